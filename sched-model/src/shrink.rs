//! Shrinking: what is left of a failing program when all is taken away that the failure does not need.
//!
//! One thing after the other is taken away, the largest first: CPUs, runs of statements, single ones, two at once (a lock and
//! its release), then what nobody mentions any more. What remains must be well-formed and fail in the same way.

use lazytlb_machine::{Found, Kind, Limits, Search};

use crate::kernel::{KernelStatement, Read};
use crate::model::{Model, Setting};
use crate::program::{InInterrupt, Program, Statement, TaskDecl};
use crate::well_formed::check;

/// What is left of a failing program.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The program.
    pub program: Program,
    /// What it shows, with a schedule for it.
    pub found: Found,
    /// How many smaller programs were run.
    pub tried: u64,
}

/// Takes away what the failure does not need. Each smaller program is run for `executions`, half of them by chance and half by
/// PCT: it is kept if it fails in the same way in any. Then the execution with the fewest preemptions is looked for.
pub fn shrink(program: &Program, setting: &Setting, found: &Found, executions: u64) -> Shrunk {
    let mut shrunk = Shrunk { program: program.clone(), found: found.clone(), tried: 0 };
    while let Some(smaller) = smaller(&mut shrunk.tried, &shrunk.program, setting, found.verdict.kind, executions) {
        (shrunk.program, shrunk.found) = smaller;
    }
    shrunk.found = Model::new(&shrunk.program, setting).shrink(&shrunk.found);
    shrunk
}

/// The first smaller program that fails in the same way.
fn smaller(
    tried: &mut u64,
    program: &Program,
    setting: &Setting,
    kind: Kind,
    executions: u64,
) -> Option<(Program, Found)> {
    candidates(program).filter(|candidate| check(candidate).is_ok()).find_map(|candidate| {
        *tried += 1;
        let found = fails(&candidate, setting, kind, executions)?;
        Some((candidate, found))
    })
}

/// An execution that shows a verdict of this kind, if one of so many does.
fn fails(program: &Program, setting: &Setting, kind: Kind, executions: u64) -> Option<Found> {
    let model = Model::new(program, setting);
    let executions = executions.div_ceil(2);
    let searches = [Search::Random { seed: 1, executions }, Search::Pct { seed: 1, executions, depth: 3 }];
    let limits = Limits { stop_at_first: !kind.is_finding(), ..Limits::default() };
    searches.into_iter().find_map(|search| {
        let found = model.explore(search, limits, |_| {}).found;
        found.into_iter().find(|found| found.verdict.kind == kind)
    })
}

/// Programs with something less, the boldest first. Not all of them are well-formed.
fn candidates(program: &Program) -> impl Iterator<Item = Program> + '_ {
    let cpus = 0..program.cpus();
    let without_cpu = cpus.clone().filter_map(|cpu| {
        let mut kept = Kept::all(program);
        kept.cpus[cpu] = false;
        kept.of(program)
    });
    let without_run = cpus.clone().flat_map(|cpu| {
        let length = program.scripts[cpu].len();
        let sizes = (0..usize::BITS).map(move |halved| length >> halved).take_while(|&size| size > 0);
        sizes.flat_map(move |size| (0..=length - size).step_by(size).map(move |from| (cpu, from..from + size)))
    });
    let without_two = cpus.clone().flat_map(|cpu| {
        let length = program.scripts[cpu].len();
        (0..length).flat_map(move |first| (first + 1..length).map(move |second| (cpu, [first, second])))
    });
    let without_run = without_run.map(|(cpu, run)| without_statements(program, cpu, |at| run.contains(&at)));
    let without_two = without_two.map(|(cpu, two)| without_statements(program, cpu, |at| two.contains(&at)));
    let idle = cpus.filter(|&cpu| program.start[cpu].is_some()).map(|cpu| {
        let mut idle = program.clone();
        idle.start[cpu] = None;
        idle
    });
    let without_task = (0..program.tasks.len()).filter_map(|task| {
        let mut kept = Kept::all(program);
        kept.tasks[task] = false;
        kept.of(program)
    });
    let all = without_cpu.chain(without_run).chain(idle).chain(without_task).chain(plainer(program)).chain(without_two);
    all.map(|candidate| tidy(&candidate).unwrap_or(candidate))
        .map(Program::hold_what_is_put)
        .filter(move |one| one != program)
}

fn without_statements(program: &Program, cpu: usize, goes: impl Fn(usize) -> bool) -> Program {
    let mut fewer = program.clone();
    let mut at = 0..;
    fewer.scripts[cpu].retain(|_| !at.next().is_some_and(&goes));
    fewer
}

/// Without what is not a statement.
fn plainer(program: &Program) -> [Program; 5] {
    let is_of_words = |statement: &Statement| {
        matches!(statement, Statement::Kernel(KernelStatement::StoreUser(_) | KernelStatement::LoadUser(_)))
    };
    let with = |change: &dyn Fn(&mut Program)| {
        let mut plainer = program.clone();
        change(&mut plainer);
        plainer
    };
    [
        with(&|program| program.isolated.clear()),
        with(&|program| program.walkers.clear()),
        with(&|program| program.checks_active_mm = false),
        with(&|program| program.kernel.cid = None),
        with(&|program| {
            program.kernel.forbidden.clear();
            program.scripts.iter_mut().for_each(|script| script.retain(|statement| !is_of_words(statement)));
        }),
    ]
}

/// The program without what nobody mentions.
pub(crate) fn tidy(program: &Program) -> Option<Program> {
    Kept::mentioned(program).of(program)
}

/// What is kept of a program.
struct Kept {
    cpus: Vec<bool>,
    tasks: Vec<bool>,
    mms: Vec<bool>,
    words: Vec<bool>,
    locks: Vec<bool>,
}

/// The new number of what is kept.
fn renumbered(kept: &[bool], old: usize) -> Option<usize> {
    let is_kept = *kept.get(old)?;
    is_kept.then(|| kept[..old].iter().filter(|&&kept| kept).count())
}

fn retained<T: Clone>(all: &[T], kept: &[bool]) -> Vec<T> {
    all.iter().zip(kept).filter(|&(_, &kept)| kept).map(|(one, _)| one.clone()).collect()
}

impl Kept {
    fn all(program: &Program) -> Kept {
        Kept {
            cpus: vec![true; program.cpus()],
            tasks: vec![true; program.tasks.len()],
            mms: vec![true; program.mms.len()],
            words: vec![true; program.kernel.words.len()],
            locks: vec![true; program.kernel.locks.len()],
        }
    }

    fn mentioned(program: &Program) -> Kept {
        // What cannot be said without it mentions it.
        let is_mentioned = |change: &dyn Fn(&mut Kept)| {
            let mut kept = Kept::all(program);
            change(&mut kept);
            let statements = program.scripts.iter().enumerate();
            let all = statements.flat_map(|(cpu, script)| script.iter().map(move |&statement| (cpu, statement)));
            let mut said = all.map(|(cpu, statement)| kept.statement(program, cpu, statement));
            let starts = program.start.iter().flatten().all(|&task| kept.tasks[task]);
            let reads = program.kernel.forbidden.iter().flatten().all(|read| kept.words[read.word]);
            let cid = program.kernel.cid.is_none_or(|mm| kept.mms[mm]);
            !(starts && reads && cid && said.all(|statement| statement.is_some()))
        };
        let runs: Vec<bool> =
            (0..program.tasks.len()).map(|task| is_mentioned(&|kept| kept.tasks[task] = false)).collect();
        let runs_on = |mm| program.tasks.iter().zip(&runs).any(|(task, &runs)| runs && task.mm == Some(mm));
        let mms: Vec<bool> =
            (0..program.mms.len()).map(|mm| runs_on(mm) || is_mentioned(&|kept| kept.mms[mm] = false)).collect();
        let keeps_mm = |task: &TaskDecl| task.mm.is_some_and(|mm| mms[mm]);
        Kept {
            cpus: vec![true; program.cpus()],
            tasks: program.tasks.iter().zip(&runs).map(|(task, &runs)| runs || keeps_mm(task)).collect(),
            words: (0..program.kernel.words.len()).map(|word| is_mentioned(&|kept| kept.words[word] = false)).collect(),
            locks: (0..program.kernel.locks.len()).map(|lock| is_mentioned(&|kept| kept.locks[lock] = false)).collect(),
            mms,
        }
    }

    /// The program with what is kept, if it mentions nothing else.
    fn of(&self, program: &Program) -> Option<Program> {
        let mm = |old| renumbered(&self.mms, old);
        let cpu = |old| renumbered(&self.cpus, old);
        let tasks = retained(&program.tasks, &self.tasks)
            .into_iter()
            .map(|task| Some(TaskDecl { name: task.name, mm: task.mm.map_or(Some(None), |old| mm(old).map(Some))? }));
        let start = retained(&program.start, &self.cpus).into_iter();
        let start = start.map(|task| task.map_or(Some(None), |old| renumbered(&self.tasks, old).map(Some)));
        let scripts = program.scripts.iter().enumerate().filter(|(cpu, _)| self.cpus[*cpu]).map(|(cpu, script)| {
            script.iter().map(|&statement| self.statement(program, cpu, statement)).collect::<Option<Vec<_>>>()
        });
        let read = |read: &Read| {
            let (cpu, word) = (cpu(read.cpu)?, renumbered(&self.words, read.word)?);
            Some(Read { cpu, word, value: read.value })
        };
        let forbidden = program.kernel.forbidden.iter().map(|reads| reads.iter().map(read).collect::<Option<Vec<_>>>());
        let mut kept = Program {
            mms: retained(&program.mms, &self.mms),
            tasks: tasks.collect::<Option<Vec<_>>>()?,
            start: start.collect::<Option<Vec<_>>>()?,
            scripts: scripts.collect::<Option<Vec<_>>>()?,
            walkers: program.walkers.iter().filter_map(|&old| cpu(old)).collect(),
            isolated: program.isolated.iter().filter_map(|&old| cpu(old)).collect(),
            ..program.clone()
        };
        kept.kernel.words = retained(&program.kernel.words, &self.words);
        kept.kernel.locks = retained(&program.kernel.locks, &self.locks);
        kept.kernel.cid = program.kernel.cid.map_or(Some(None), |old| mm(old).map(Some))?;
        kept.kernel.forbidden = forbidden.collect::<Option<Vec<_>>>()?;
        (kept.cpus() > 0).then(|| kept.hold_what_is_put())
    }

    /// The statement with the new numbers, if it mentions nothing but what is kept.
    fn statement(&self, program: &Program, cpu: usize, statement: Statement) -> Option<Statement> {
        use Statement::*;
        let mm = |old| renumbered(&self.mms, old);
        let task = |old| renumbered(&self.tasks, old);
        Some(match statement {
            Switch(idle) if idle == program.idle(cpu) => {
                let tasks = self.tasks.iter().filter(|&&kept| kept).count();
                Switch(tasks + renumbered(&self.cpus, cpu)?)
            }
            Switch(next) => Switch(task(next)?),
            Exec(new) => Exec(mm(new)?),
            UseMm(adopted) => UseMm(mm(adopted)?),
            Mmput(of) => Mmput(mm(of)?),
            Mmdrop(of) => Mmdrop(mm(of)?),
            Flush(of, freed) => Flush(mm(of)?, freed),
            Munmap(of) => Munmap(mm(of)?),
            Unmap(of) => Unmap(mm(of)?),
            Revive(of) => Revive(mm(of)?),
            Interrupt(source, InInterrupt::Mmput(of)) => Interrupt(source, InInterrupt::Mmput(mm(of)?)),
            Interrupt(source, InInterrupt::Mmdrop(of)) => Interrupt(source, InInterrupt::Mmdrop(mm(of)?)),
            Preempt(next) => Preempt(task(next)?),
            Migrate(next) => Migrate(task(next)?),
            Kernel(statement) => Kernel(self.kernel(statement)?),
            // A place in a script, where there are fewer statements now: no random program has it.
            Goto(_) => return None,
            Exit | UnuseMm | Access | LookIntoActiveMm | Offline | Online | DeepIdle | Interrupt(..) => statement,
        })
    }

    fn kernel(&self, statement: KernelStatement) -> Option<KernelStatement> {
        use KernelStatement::*;
        let mm = |old| renumbered(&self.mms, old);
        let word = |old| renumbered(&self.words, old);
        let lock = |old| renumbered(&self.locks, old);
        Some(match statement {
            UseTemporaryMm(of) => UseTemporaryMm(mm(of)?),
            TextPoke(of) => TextPoke(mm(of)?),
            LoadRoot(of) => LoadRoot(mm(of)?),
            StoreUser(of) => StoreUser(word(of)?),
            LoadUser(of) => LoadUser(word(of)?),
            Membarrier(of) => Membarrier(mm(of)?),
            MembarrierOfTasks(of) => MembarrierOfTasks(mm(of)?),
            ClearCid(of) => ClearCid(renumbered(&self.cpus, of)?),
            Lock(of) => Lock(lock(of)?),
            LockIrq(of) => LockIrq(lock(of)?),
            Unlock(of) => Unlock(lock(of)?),
            MunmapFreesFirst(of) => MunmapFreesFirst(mm(of)?),
            MmdropTwice(of) => MmdropTwice(mm(of)?),
            MustBeReaped(of) => MustBeReaped(mm(of)?),
            UnuseTemporaryMm | SaveRoot | LoadSavedRoot | OfflineBorrowing | OfflineFirst | OfflineLookingEarly
            | Leave | WalkLeaders | WalkLeadersStopped => statement,
        })
    }
}
