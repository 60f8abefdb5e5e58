//! Random programs: [`well_formed`](crate::well_formed) ones, each from a number.
//!
//! A program begins with empty scripts. Then statements are put in one after the other, at random places, and what makes it
//! ill-formed is taken out again: so all that the language has can meet, and what a program may do is written down in one place.

use fastrand::Rng;
use lazytlb_machine::MemoryModel;

use crate::kernel::{KernelInterrupt, KernelStatement};
use crate::litmus::Litmus;
use crate::program::{InInterrupt, Program, Source, Statement, TaskDecl};
use crate::shrink::tidy;
use crate::well_formed::{check, duel};

/// The most CPUs that a random program has.
pub const MOST_CPUS: usize = 4;
/// The most statements that each of its CPUs is given; what belongs together may be a few more.
const MOST_STATEMENTS: usize = 7;
/// How many more address spaces than CPUs a program may begin with: more than arm64's rule has ASIDs here, so that they run out.
const SPARE_MMS: usize = 3;
/// The most address spaces, those included that are made by execs.
const MOST_MMS: usize = MOST_CPUS + SPARE_MMS + 2;
/// How often a statement is tried for each that is wanted: most places fit most statements not.
const TRIES: usize = 8;

/// The program of a number: always the same.
pub fn program(number: u64) -> Program {
    let mut maker = Maker::new(number);
    maker.fill();
    maker.finish()
}

/// The program as a litmus test, on all machines and under the memory models that say something of it.
pub fn litmus(program: Program) -> Litmus {
    let mut memories = MemoryModel::ALL.to_vec();
    // What a cached translation is under `weak` nobody has said.
    memories.retain(|&memory| memory != MemoryModel::Weak || !program.accesses());
    Litmus { memories, ..Litmus::of(program) }
}

struct Maker {
    rng: Rng,
    program: Program,
}

/// Statements that are put in together, in this order.
type Group = Vec<Statement>;

impl Maker {
    fn new(number: u64) -> Maker {
        let mut rng = Rng::with_seed(number);
        let program = Program { name: format!("random-{number:016x}"), ..Program::default() };
        let cpus = [1, 2, 2, 2, 3, 3, 3, MOST_CPUS][rng.usize(..8)];
        // Mostly few, so that CPUs meet on them.
        let mms = if rng.usize(..4) == 0 { rng.usize(1..=cpus + SPARE_MMS) } else { rng.usize(1..=3) };
        let mut maker = Maker { rng, program };
        for mm in 0..mms {
            maker.program.mms.push(letter(mm));
        }
        // Who has an address space and never runs keeps it to the end.
        let sleepers = maker.rng.usize(..3);
        for _ in 0..cpus + sleepers + maker.rng.usize(..3) {
            let mm = maker.rng.usize(..mms);
            maker.add_user(mm);
        }
        for mm in 0..mms {
            if maker.program.tasks.iter().all(|task| task.mm != Some(mm)) {
                maker.add_user(mm);
            }
        }
        for kthread in 0..maker.rng.usize(..3) {
            maker.program.tasks.push(TaskDecl { name: format!("k{kthread}"), mm: None });
        }
        if maker.one_in(4) {
            // Temporary tables, which somebody has who never runs.
            maker.program.mms.push("T".into());
            maker.add_user(mms);
        }
        maker.program.scripts = vec![Vec::new(); cpus];
        maker.program.start = (0..cpus).map(|cpu| Some(cpu).filter(|_| maker.rng.usize(..8) > 1)).collect();
        maker.program.isolated = (0..cpus).filter(|_| maker.rng.usize(..16) == 0).collect();
        maker.program.walkers = (0..cpus).filter(|_| maker.rng.usize(..8) == 0).collect();
        maker.program.checks_active_mm = maker.one_in(4);
        maker.program.kernel.locks = vec!["lock".into()];
        if maker.one_in(8) {
            maker.program.kernel.cid = Some(maker.rng.usize(..mms));
        }
        maker.program = maker.program.hold_what_is_put();
        maker
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.rng.usize(..many) == 0
    }

    fn add_user(&mut self, mm: usize) {
        let number = self.program.tasks.iter().filter(|task| task.mm == Some(mm)).count();
        let name = format!("{}{number}", self.program.mms[mm].to_lowercase());
        self.program.tasks.push(TaskDecl { name, mm: Some(mm) });
    }

    fn fill(&mut self) {
        let cpus = self.program.cpus();
        if cpus > 1 && self.one_in(6) {
            self.try_duel();
        }
        let wanted = self.rng.usize(cpus..=cpus * MOST_STATEMENTS);
        for _ in 0..wanted * TRIES {
            if self.program.scripts.iter().map(Vec::len).sum::<usize>() >= wanted {
                return;
            }
            let cpu = self.rng.usize(..cpus);
            let (group, new_mm) = self.group(cpu);
            let mut candidate = self.program.clone();
            if new_mm {
                candidate.mms.push(letter(candidate.mms.len()));
            }
            self.insert(&mut candidate.scripts[cpu], &group);
            self.keep(candidate);
        }
    }

    /// Keeps a candidate if it is well-formed.
    fn keep(&mut self, candidate: Program) {
        let candidate = candidate.hold_what_is_put();
        if check(&candidate).is_ok() {
            self.program = candidate;
        }
    }

    /// Puts statements in, in this order, at any places; mostly at the end.
    fn insert(&mut self, script: &mut Vec<Statement>, group: &[Statement]) {
        let mut from = 0;
        for &statement in group {
            let at = if self.rng.bool() { script.len() } else { self.rng.usize(from..=script.len()) };
            script.insert(at, statement);
            from = at + 1;
        }
    }

    fn try_duel(&mut self) {
        let mut candidate = self.program.clone();
        let slow = self.rng.usize(..candidate.cpus());
        let fast = (slow + self.rng.usize(1..candidate.cpus())) % candidate.cpus();
        let (of_slow, of_fast, reads) = duel(0, slow, fast);
        self.insert(&mut candidate.scripts[slow], &of_slow);
        self.insert(&mut candidate.scripts[fast], &of_fast);
        candidate.kernel.words = vec!["X".into(), "Y".into()];
        candidate.kernel.forbidden = vec![reads];
        // All are threads of one process.
        candidate.kernel.cid = None;
        candidate.mms.truncate(1);
        for task in candidate.tasks.iter_mut().filter(|task| task.mm.is_some()) {
            task.mm = Some(0);
        }
        for (number, task) in candidate.tasks.iter_mut().filter(|task| task.mm.is_some()).enumerate() {
            task.name = format!("a{number}");
        }
        candidate.start[slow].get_or_insert(slow);
        candidate.start[fast].get_or_insert(fast);
        self.keep(candidate);
    }

    /// Something to do, and whether it needs a new mm.
    fn group(&mut self, cpu: usize) -> (Group, bool) {
        use Statement::*;
        let mms = self.program.mms.len();
        let mm = self.rng.usize(..mms);
        let task = self.rng.usize(..self.program.tasks.len());
        let idle = self.program.idle(cpu);
        let one = |statement| (vec![statement], false);
        let kernel = |statement| (vec![Kernel(statement)], false);
        match self.rng.usize(..100) {
            0..20 => one(Switch(task)),
            20..30 => one(Switch(idle)),
            30..40 => one(Exit),
            40..43 if mms < MOST_MMS => (vec![Exec(mms)], true),
            43..47 if self.rng.bool() => (vec![Switch(task), UseMm(mm), UnuseMm], false),
            43..47 => (vec![UseMm(mm), Access, UnuseMm], false),
            47..52 => one(Mmput(mm)),
            52..55 => one(Mmdrop(mm)),
            55..58 => one(Flush(mm, self.rng.bool())),
            58..60 => one(Munmap(mm)),
            60..63 => one(Unmap(mm)),
            63..67 => one(Access),
            67..70 => one(Revive(mm)),
            70..72 => one(LookIntoActiveMm),
            72..74 => (vec![Switch(idle), Offline], false),
            74..76 => (vec![Switch(idle), Offline, Online], false),
            76..78 => one(DeepIdle),
            78..84 => one(Interrupt(self.source(), self.in_interrupt(mm))),
            84..88 => one(Preempt(task)),
            88..92 => one(Migrate(task)),
            92..94 => {
                (vec![Kernel(KernelStatement::UseTemporaryMm(mm)), Kernel(KernelStatement::UnuseTemporaryMm)], false)
            }
            94..95 => kernel(KernelStatement::TextPoke(mm)),
            95..96 => kernel(KernelStatement::Membarrier(mm)),
            96..97 => kernel(KernelStatement::ClearCid(self.rng.usize(..self.program.cpus()))),
            97..98 if self.rng.bool() => self.locked(KernelStatement::Lock(0)),
            97..98 => self.locked(KernelStatement::LockIrq(0)),
            98..99 => kernel(KernelStatement::WalkLeadersStopped),
            _ => kernel(KernelStatement::Leave),
        }
    }

    fn locked(&self, lock: KernelStatement) -> (Group, bool) {
        (vec![Statement::Kernel(lock), Statement::Kernel(KernelStatement::Unlock(0))], false)
    }

    fn source(&mut self) -> Source {
        [Source::Irq, Source::Irq, Source::Softirq, Source::Nmi][self.rng.usize(..4)]
    }

    fn in_interrupt(&mut self, mm: usize) -> InInterrupt {
        match self.rng.usize(..4) {
            0 => InInterrupt::LookIntoActiveMm,
            1 => InInterrupt::Mmdrop(mm),
            2 => InInterrupt::Kernel(KernelInterrupt::ReadUserChecked),
            _ => InInterrupt::Kernel(KernelInterrupt::Leave),
        }
    }

    /// The program without what nobody mentions.
    fn finish(self) -> Program {
        tidy(&self.program).filter(|tidy| check(tidy).is_ok()).unwrap_or(self.program)
    }
}

fn letter(number: usize) -> String {
    char::from(b'A' + number as u8).to_string()
}
