//! Litmus tests as text, as [`Litmus::parse`] reads them.

use core::fmt;

use lazytlb_machine::text::{MAGIC, write_columns, write_line as line};

use super::{Litmus, Slow};
use crate::kernel::{KernelInterrupt, KernelStatement};
use crate::program::{InInterrupt, Program, Roam, Source, Statement};
use crate::strategies::Rules;

/// The whole test: what is printed is read as an equal one.
impl fmt::Display for Litmus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}")?;
        for line in self.about.lines() {
            writeln!(f, "{}", format!("# {line}").trim_end())?;
        }
        self.header(f)?;
        writeln!(f)?;
        columns(f, &self.program)?;
        self.conditions(f)
    }
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strategies = self.strategies.iter().map(|strategy| strategy.name()).collect::<Vec<_>>();
        f.write_str(&strategies.join(" "))?;
        let machines = self.machines.iter().map(|rules| rules.name()).collect::<Vec<_>>();
        let memories = self.memories.iter().map(|memory| memory.name()).collect::<Vec<_>>();
        for (key, names) in [("on", machines), ("under", memories)].iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, " {key} {}", names.join(" "))?;
        }
        Ok(())
    }
}

impl Litmus {
    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Program { name, mms, tasks, kernel, checks_active_mm, roam, .. } = &self.program;
        line(f, "name", [name])?;
        if let Some((number, title)) = &self.bug {
            line(f, "bug", [number, title])?;
        }
        for slow in &self.slow {
            line(f, "slow", [slow])?;
        }
        line(f, "drop", &self.dropped)?;
        line(f, "relax", &self.relaxed)?;
        line(f, "mutant", self.mutant)?;
        if self.machines != Rules::ALL {
            line(f, "machine", &self.machines)?;
        }
        line(f, "memory", &self.memories)?;
        let checks = [
            (*checks_active_mm, "active_mm"),
            (kernel.pins_roots, "pinned-roots"),
            (kernel.freeing_sleeps, "freeing-sleeps"),
        ];
        for (_, check) in checks.iter().filter(|(is_on, _)| *is_on) {
            line(f, "check", [check])?;
        }
        line(f, "word", &kernel.words)?;
        line(f, "spinlock", &kernel.locks)?;
        line(f, "mm", mms)?;
        for task in tasks {
            match task.mm {
                Some(mm) => line(f, "user", [&task.name, &mms[mm]])?,
                None => line(f, "kthread", [&task.name])?,
            }
        }
        match roam {
            Some(Roam { execs: None }) => writeln!(f, "roam")?,
            Some(Roam { execs: Some(execs) }) => line(f, "roam", [execs])?,
            None => {}
        }
        line(f, "cid", kernel.cid.map(|mm| &mms[mm]))
    }

    fn conditions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = &self.program.kernel;
        let judged = !kernel.forbidden.is_empty() || !self.allowed.is_empty() || !self.expected.is_empty();
        if judged {
            writeln!(f)?;
        }
        for reads in &kernel.forbidden {
            line(
                f,
                "forbid",
                reads.iter().map(|read| format!("{}:{}={}", read.cpu, kernel.words[read.word], read.value)),
            )?;
        }
        line(f, "allow", &self.allowed)?;
        for one in &self.expected {
            let setting = [one.strategy.name(), one.rules.name()];
            line(f, "expect", setting.into_iter().chain(one.kinds.iter().map(|kind| kind.name())))?;
        }
        Ok(())
    }
}

/// The columns, as wide as what is in them.
fn columns(f: &mut fmt::Formatter<'_>, program: &Program) -> fmt::Result {
    let cpu = |cpu: usize| {
        let task = program.start[cpu].map_or("idle", |task| &program.tasks[task].name);
        let isolated = if program.isolated.contains(&cpu) { " isolated" } else { "" };
        let statements = program.scripts[cpu].iter().map(|&statement| text_of(program, statement));
        [format!("cpu {task}{isolated}")].into_iter().chain(statements).collect::<Vec<String>>()
    };
    let walkers = program.walkers.iter().map(|cpu| vec![format!("walker {cpu}")]);
    let columns: Vec<Vec<String>> = (0..program.cpus()).map(cpu).chain(walkers).collect();
    write_columns(f, &columns)
}

/// A statement in the words of the language.
fn text_of(program: &Program, statement: Statement) -> String {
    use Statement::*;
    let mm = |mm: usize| &program.mms[mm];
    let task = |task: usize| program.tasks.get(task).map_or("idle", |task| &task.name);
    match statement {
        Switch(next) => format!("switch {}", task(next)),
        Exit => "exit".into(),
        Exec(new) => format!("exec {}", mm(new)),
        UseMm(adopted) => format!("use {}", mm(adopted)),
        UnuseMm => "unuse".into(),
        Mmput(of) => format!("mmput {}", mm(of)),
        Mmdrop(of) => format!("mmdrop {}", mm(of)),
        Flush(of, false) => format!("flush {}", mm(of)),
        Flush(of, true) => format!("flush {} freed", mm(of)),
        Munmap(of) => format!("munmap {}", mm(of)),
        Unmap(of) => format!("unmap {}", mm(of)),
        Access => "access".into(),
        Revive(of) => format!("revive {}", mm(of)),
        LookIntoActiveMm => "look".into(),
        Offline => "offline".into(),
        Online => "online".into(),
        DeepIdle => "deep-idle".into(),
        Goto(target) => format!("goto {}", target + 1),
        Interrupt(source, what) => {
            let source = match source {
                Source::Irq => "irq",
                Source::Softirq => "softirq",
                Source::Nmi => "nmi",
            };
            let what = match what {
                InInterrupt::LookIntoActiveMm => "look".into(),
                InInterrupt::Mmput(of) => format!("mmput {}", mm(of)),
                InInterrupt::Mmdrop(of) => format!("mmdrop {}", mm(of)),
                InInterrupt::Kernel(KernelInterrupt::ReadUser) => "read-user".into(),
                InInterrupt::Kernel(KernelInterrupt::ReadUserChecked) => "read-user-checked".into(),
                InInterrupt::Kernel(KernelInterrupt::LookIntoParked) => "look-parked".into(),
                InInterrupt::Kernel(KernelInterrupt::Leave) => "leave".into(),
            };
            format!("{source} {what}")
        }
        Preempt(next) => format!("preempt {}", task(next)),
        Migrate(next) => format!("migrate {}", task(next)),
        Kernel(statement) => text_of_kernel(program, statement),
    }
}

fn text_of_kernel(program: &Program, statement: KernelStatement) -> String {
    use KernelStatement::*;
    let (mms, kernel) = (&program.mms, &program.kernel);
    match statement {
        UseTemporaryMm(mm) => format!("use-temporary-mm {}", mms[mm]),
        UnuseTemporaryMm => "unuse-temporary-mm".into(),
        TextPoke(mm) => format!("text-poke {}", mms[mm]),
        SaveRoot => "save-root".into(),
        LoadRoot(mm) => format!("load-root {}", mms[mm]),
        LoadSavedRoot => "load-saved-root".into(),
        StoreUser(word) => format!("store-user {}", kernel.words[word]),
        LoadUser(word) => format!("load-user {}", kernel.words[word]),
        Membarrier(mm) => format!("membarrier {}", mms[mm]),
        MembarrierOfTasks(mm) => format!("membarrier {} of-tasks", mms[mm]),
        ClearCid(cpu) => format!("clear-cid {cpu}"),
        Lock(lock) => format!("lock {}", kernel.locks[lock]),
        LockIrq(lock) => format!("lock-irq {}", kernel.locks[lock]),
        Unlock(lock) => format!("unlock {}", kernel.locks[lock]),
        OfflineBorrowing => "offline borrowing".into(),
        OfflineFirst => "offline first".into(),
        OfflineLookingEarly => "offline looking-early".into(),
        Leave => "leave".into(),
        MunmapFreesFirst(mm) => format!("munmap {} frees-first", mms[mm]),
        MmdropTwice(mm) => format!("mmdrop {} twice", mms[mm]),
        WalkLeaders => "walk-leaders".into(),
        WalkLeadersStopped => "walk-leaders stopped".into(),
        MustBeReaped(mm) => format!("must-be-reaped {}", mms[mm]),
    }
}
