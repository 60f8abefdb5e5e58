//! Programs: what each CPU's tasks do, statement by statement.
//!
//! A program names its address spaces and tasks, says what each CPU runs at the start, and gives each CPU a script.
//! Whichever task runs on a CPU does the next statement of that CPU's script, so `switch` is all that a scheduler needs.

use core::fmt;

use crate::kernel::{Kernel, KernelInterrupt, KernelStatement};

/// One step of a script. Numbers are indices into the program's lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Statement {
    /// The CPU switches to a task.
    Switch(usize),
    /// The running task gives its address space up (exit_mm).
    Exit,
    /// The running task replaces its address space by a new one (exec_mmap).
    Exec(usize),
    /// The running kernel thread adopts an address space (kthread_use_mm); the program holds a user of it.
    UseMm(usize),
    /// It gives it back (kthread_unuse_mm).
    UnuseMm,
    /// A user of an address space that the script holds is put (mmput).
    Mmput(usize),
    /// A reference to an address space that the script holds is dropped (mmdrop).
    Mmdrop(usize),
    /// Translations of an address space are flushed; with `true`, page tables are about to be freed.
    Flush(usize, bool),
    /// The page of an address space is unmapped: its leaf table is unhooked, flushed, and freed. Nothing the second time.
    Munmap(usize),
    /// The page of an address space is unmapped, its tables stay: its entry is cleared, flushed, and the frame freed.
    /// Nothing the second time.
    Unmap(usize),
    /// The running task accesses its user page.
    Access,
    /// The running kernel thread takes a user of an address space if there is one still, adopts it, accesses its page, and
    /// gives all back (mmget_not_zero, kthread_use_mm, kthread_unuse_mm, mmput).
    Revive(usize),
    /// The running task looks into `active_mm`, with interrupts off.
    LookIntoActiveMm,
    /// The CPU goes offline: it leaves what it borrows and takes no more interrupts. Nothing may follow but `online`.
    Offline,
    /// It comes back, with its idle task on `init_mm`.
    Online,
    /// The running kernel thread is about to let the CPU sleep for long (cpu_idle_enter).
    DeepIdle,
    /// The script goes on with an earlier statement.
    Goto(usize),
    /// From here on an interrupt may come, once, at any step that lets it: it does something in its own context.
    Interrupt(Source, InInterrupt),
    /// From here on the running task may be preempted, once, at any step that lets it: the CPU goes on with a kernel
    /// thread or another task, and with the script.
    Preempt(usize),
    /// The CPU takes a task over from another CPU, as soon as that one has switched away from it.
    Migrate(usize),
    /// What the rest of the kernel does.
    Kernel(KernelStatement),
}

/// Where the code of an interrupt runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// In the hardware interrupt's handler.
    Irq,
    /// In a softirq on the way out of one.
    Softirq,
    /// In a non-maskable interrupt.
    Nmi,
}

/// What an interrupt does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InInterrupt {
    /// Looks into `active_mm`.
    LookIntoActiveMm,
    /// Puts a user.
    Mmput(usize),
    /// Drops a reference.
    Mmdrop(usize),
    /// What the rest of the kernel does.
    Kernel(KernelInterrupt),
}

/// A task of a program.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TaskDecl {
    /// Its name.
    pub name: String,
    /// The address space it starts with; none for a kernel thread.
    pub mm: Option<usize>,
}

/// What the CPUs of a machine do.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Program {
    /// The name of the program.
    pub name: String,
    /// The address spaces by name.
    pub mms: Vec<String>,
    /// The tasks. Every CPU has an idle task besides, which it boots with; it is numbered after these.
    pub tasks: Vec<TaskDecl>,
    /// The task that each CPU runs at the start, if it is not its idle task.
    pub start: Vec<Option<usize>>,
    /// Each CPU's script.
    pub scripts: Vec<Vec<Statement>>,
    /// Users and references that scripts hold besides the tasks' own: for each address space, how many of each.
    pub held: Vec<(usize, usize)>,
    /// The CPUs whose hardware walks page tables by itself, an agent each.
    pub walkers: Vec<usize>,
    /// The CPUs that are to be left alone.
    pub isolated: Vec<usize>,
    /// Whether the switch path checks one byte of `prev->active_mm`, as Lutomirski's patch of November 2021 did.
    pub checks_active_mm: bool,
    /// What the rest of the kernel has.
    pub kernel: Kernel,
    /// Instead of scripts: whatever tasks can do, in whatever order.
    pub roam: Option<Roam>,
}

/// Tasks that do all that they can, for ever, on whatever CPU is free: see [`roam`](crate::roam).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Roam {
    /// How often an address space is made, all tasks together; as often as they like if not said.
    pub execs: Option<usize>,
}

impl Program {
    /// How many CPUs it needs.
    pub fn cpus(&self) -> usize {
        self.scripts.len()
    }

    /// The number of a CPU's idle task.
    pub fn idle(&self, cpu: usize) -> usize {
        self.tasks.len() + cpu
    }

    /// The number of the task that a CPU runs at the start.
    pub fn first(&self, cpu: usize) -> usize {
        self.start[cpu].unwrap_or_else(|| self.idle(cpu))
    }

    /// Whether a task is some CPU's idle task.
    pub fn is_idle(&self, task: usize) -> bool {
        task >= self.tasks.len()
    }

    /// What users and references the scripts must hold at the start so that each put and drop has one: filled in from
    /// the statements.
    pub fn hold_what_is_put(mut self) -> Program {
        self.held = vec![(0, 0); self.mms.len()];
        let mut used = vec![false; self.mms.len()];
        for statement in self.scripts.iter().flatten() {
            match *statement {
                Statement::Mmput(mm) | Statement::Interrupt(_, InInterrupt::Mmput(mm)) => self.held[mm].0 += 1,
                Statement::Mmdrop(mm)
                | Statement::Kernel(KernelStatement::MmdropTwice(mm))
                | Statement::Interrupt(_, InInterrupt::Mmdrop(mm)) => self.held[mm].1 += 1,
                Statement::UseMm(mm) => used[mm] = true,
                Statement::Kernel(statement) => {
                    if let Some(mm) = statement.needs_user() {
                        used[mm] = true;
                    }
                }
                _ => {}
            }
        }
        // Who adopts an mm is handed a user of it for as long as it likes.
        for (held, used) in self.held.iter_mut().zip(used) {
            held.0 = held.0.max(usize::from(used));
        }
        self
    }

    /// The statements of a CPU that arrive later than they are reached: each has the vector of its place in this list,
    /// from 1.
    pub fn arriving(&self, cpu: usize) -> Vec<Statement> {
        let arrives = |statement: &&Statement| matches!(statement, Statement::Interrupt(..) | Statement::Preempt(_));
        self.scripts[cpu].iter().filter(arrives).copied().collect()
    }

    /// Whether any CPU has such statements.
    pub fn arriving_any(&self) -> bool {
        (0..self.cpus()).any(|cpu| !self.arriving(cpu).is_empty())
    }

    /// Whether a task can lose its CPU without asking.
    pub fn preempts(&self) -> bool {
        self.scripts.iter().flatten().any(|statement| matches!(statement, Statement::Preempt(_)))
    }

    /// Whether all its executions are to end. A script with a loop may go on for ever, and tasks that roam may.
    pub fn ends(&self) -> bool {
        let loops = |statement: &Statement| matches!(statement, Statement::Goto(_));
        self.roam.is_none() && !self.scripts.iter().flatten().any(loops)
    }

    /// Whether user memory is accessed, so that cached translations matter.
    pub fn accesses(&self) -> bool {
        let accesses = |statement: &Statement| matches!(statement, Statement::Access | Statement::Revive(_));
        self.scripts.iter().flatten().any(accesses)
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
