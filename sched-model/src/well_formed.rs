//! Well-formed programs: those that a correct kernel could run, so that whatever is found in them is a fault of what they run
//! on, or of the model.
//!
//! [`check`] goes through a program without running it. It knows of each CPU which tasks may be running when a statement is
//! reached, and of each task which address space it has; each statement has its preconditions. It refuses more than it must: a
//! program that it refuses may be right, one that it accepts is.
//!
//! | what | is accepted where |
//! | --- | --- |
//! | any task | runs on one CPU; one that is running at the start may move once, by `migrate`, for good |
//! | `migrate` | no preemption was asked for, on this CPU or on the other one while the task was there |
//! | `preempt` | from there on any task that the CPU was told to run may be running, and what was begun may be half done |
//! | `exit`, `access`, `store-user`, `load-user` | the task has an address space; one that was adopted is not exited |
//! | `exec` | the task has one, or is a kernel thread that never had |
//! | `use`, `revive`, `unuse` | a kernel thread without, or with that one; no preemption |
//! | `flush`, `munmap`, `unmap`, `text-poke`, `use`, ... | somebody keeps a user of the address space until the statement is over |
//! | `munmap`, `unmap` | one CPU does it to an address space: that is its `mmap_lock` |
//! | `membarrier` | it is that of the running task |
//! | `irq mmdrop`, `softirq mmdrop` | it is never the last reference |
//! | `lock`, `use-temporary-mm` | what it opens is closed; no switch, no wait and no put in between |
//! | temporary tables | of an address space that no task runs on and that nobody flushes |
//! | `offline` | on the idle task, no interrupt of the CPU's own pending |
//! | `deep-idle` | on the idle task |
//! | `walk-leaders stopped` | the CPU has been on no user's address space |
//! | `cid` | of an address space whose tasks do not leave it and that nobody adopts: the model gives ids in switches only |
//! | `forbid` | the one shape that [`duel`] has |
//!
//! Never accepted, because it is there to be caught: `save-root`, `load-root`, `load-saved-root`, `walk-leaders`,
//! `munmap frees-first`, `mmdrop twice`, `membarrier of-tasks`, `offline borrowing`, `offline first`, `offline looking-early`, `mmput` in an interrupt, `look` in a
//! softirq, `look-parked`, `read-user` without a check. Nor what says what a program must come to, or needs more of a machine or
//! a strategy than it claims: `must-be-reaped`, `check pinned-roots`, `check freeing-sleeps`. Nor `goto`: a loop need not end.

use core::fmt;

use crate::kernel::{KernelInterrupt, KernelStatement, Read};
use crate::program::{InInterrupt, Program, Source, Statement};

/// Why a program is not well-formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misuse {
    /// The CPU and the statement, both from 0, if it is one statement's fault.
    pub place: Option<(usize, usize)>,
    /// What is wrong.
    pub why: &'static str,
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((cpu, statement)) => write!(f, "statement {} of cpu{cpu}: {}", statement + 1, self.why),
            None => f.write_str(self.why),
        }
    }
}

impl core::error::Error for Misuse {}

/// Says whether a correct kernel could run the program.
///
/// # Errors
/// With the first statement that it could not, or that is not known to be one that it could.
pub fn check(program: &Program) -> Result<(), Misuse> {
    let whole = |why| Misuse { place: None, why };
    if program.kernel.pins_roots || program.kernel.freeing_sleeps {
        return Err(whole("not every strategy claims this check"));
    }
    let facts = Facts::of(program).map_err(whole)?;
    if !program.kernel.forbidden.is_empty() && !is_duel(program) {
        return Err(whole("nothing says that this condition must hold"));
    }
    Checker::new(program, &facts).run()
}

/// Who may run a task, and what is known of an address space before anything runs.
struct Facts {
    /// The CPU that runs each task, at the start if it moves; none if it never runs there.
    home: Vec<Option<usize>>,
    /// The CPU that takes it over, and the statement there.
    moves: Vec<Option<(usize, usize)>>,
    /// Whether a user of each address space stays to the end.
    permanent: Vec<bool>,
    /// Whether it is made by an exec.
    made: Vec<bool>,
    /// Whether it is loaded for a moment only.
    temporary: Vec<bool>,
}

impl Facts {
    fn of(program: &Program) -> Result<Facts, &'static str> {
        let tasks = program.tasks.len();
        let (mut home, mut moves) = (vec![None; tasks], vec![None; tasks]);
        for (cpu, script) in program.scripts.iter().enumerate() {
            for (at, statement) in script.iter().enumerate() {
                if let Statement::Migrate(task) = *statement
                    && moves[task].replace((cpu, at)).is_some()
                {
                    return Err("a task moves twice");
                }
            }
        }
        for (cpu, script) in program.scripts.iter().enumerate() {
            let moves_to = |task: usize| moves[task].map(|(to, _): (usize, usize)| to);
            if program.start[cpu].is_some_and(|task| moves_to(task) == Some(cpu)) {
                return Err("a task moves to where it is");
            }
            let told = script.iter().filter_map(|statement| match *statement {
                Statement::Switch(task) | Statement::Preempt(task) if task < tasks => Some(task),
                _ => None,
            });
            let told: Vec<usize> = told.collect();
            // Who takes it over may come first.
            if told.iter().any(|&task| moves_to(task).is_some_and(|to| to != cpu)) {
                return Err("a CPU is told to run a task that moves away");
            }
            let runs_here = told.into_iter().filter(|&task| moves_to(task).is_none()).chain(program.start[cpu]);
            for task in runs_here {
                if home[task].replace(cpu).is_some_and(|other| other != cpu) {
                    return Err("a task runs on two CPUs");
                }
            }
            let arriving = program.arriving(cpu);
            if (0..arriving.len()).any(|one| arriving[..one].contains(&arriving[one])) {
                return Err("the same interrupt is asked for twice, and comes once");
            }
        }
        let statements = || program.scripts.iter().flatten().copied();
        let runs = |task: usize| home[task].is_some() || moves[task].is_some();
        let mms = 0..program.mms.len();
        let tasks_of = |mm| (0..tasks).filter(move |&task| program.tasks[task].mm == Some(mm));
        let puts = |mm| statements().filter(|&one| one == Statement::Mmput(mm)).count();
        let execs = |mm| statements().filter(|&one| one == Statement::Exec(mm)).count();
        for mm in mms.clone() {
            let (users, references) = program.held[mm];
            let users = users + tasks_of(mm).count();
            match execs(mm) {
                0 if users == 0 => return Err("an mm has no user"),
                0 => {}
                1 if users + references == 0 => {}
                _ => return Err("an mm is made that is there already"),
            }
        }
        let permanent = |mm| tasks_of(mm).any(|task| !runs(task)) || program.held[mm].0 > puts(mm);
        let loads = |one, mm| match one {
            Statement::Kernel(KernelStatement::UseTemporaryMm(of) | KernelStatement::TextPoke(of)) => of == mm,
            _ => false,
        };
        let temporary = |mm| statements().any(|one| loads(one, mm));
        if mms.clone().any(|mm| temporary(mm) && tasks_of(mm).any(runs)) {
            return Err("a task runs on temporary tables");
        }
        Ok(Facts {
            permanent: mms.clone().map(permanent).collect(),
            made: mms.clone().map(|mm| execs(mm) > 0).collect(),
            temporary: mms.map(temporary).collect(),
            home,
            moves,
        })
    }
}

/// The address space of a task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Has {
    Nothing,
    Own(usize),
    Adopted(usize),
    /// It depends on who ran.
    Unknown,
}

impl Has {
    /// Of each task at the start, idle tasks included.
    pub(crate) fn at_start(program: &Program) -> Vec<Has> {
        let of_task = program.tasks.iter().map(|task| task.mm.map_or(Has::Nothing, Has::Own));
        of_task.chain((0..program.cpus()).map(|_| Has::Nothing)).collect()
    }
}

/// What is open on a CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    None,
    Lock(usize),
    Temporary(usize),
}

struct Cpu {
    next: usize,
    /// Any of these may be running.
    running: Vec<usize>,
    /// A preemption may come, or has.
    preempted: bool,
    /// An interrupt may come that the script has asked for.
    arrives: bool,
    /// No user's address space has been loaded here.
    clean: bool,
    section: Section,
    offline: bool,
}

struct Checker<'a> {
    program: &'a Program,
    facts: &'a Facts,
    /// Of each task, idle tasks included.
    has: Vec<Has>,
    cpus: Vec<Cpu>,
    /// Who unmaps pages of each address space, and whether it may have been preempted in that.
    changed: Vec<Option<(usize, bool)>>,
}

/// Whether a statement was done, or waits for another CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Waits,
}

type Step = Result<Progress, &'static str>;

/// Done, if the precondition holds.
pub(crate) fn only_if(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}

impl<'a> Checker<'a> {
    fn new(program: &'a Program, facts: &'a Facts) -> Self {
        let has = Has::at_start(program);
        let cpu = |cpu: usize| {
            let first = program.first(cpu);
            Cpu {
                next: 0,
                running: vec![first],
                preempted: false,
                arrives: false,
                clean: has[first] == Has::Nothing,
                section: Section::None,
                offline: false,
            }
        };
        let cpus = (0..program.cpus()).map(cpu).collect();
        Checker { program, facts, has, cpus, changed: vec![None; program.mms.len()] }
    }

    /// Each CPU goes on until it waits for another; when none can, all must have come to the end.
    fn run(&mut self) -> Result<(), Misuse> {
        loop {
            let mut moved = false;
            for cpu in 0..self.cpus.len() {
                while let Some(&statement) = self.program.scripts[cpu].get(self.cpus[cpu].next) {
                    let place = Some((cpu, self.cpus[cpu].next));
                    match self.step(cpu, statement).map_err(|why| Misuse { place, why })? {
                        Progress::Done => self.cpus[cpu].next += 1,
                        Progress::Waits => break,
                    }
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        for (cpu, state) in self.cpus.iter().enumerate() {
            let misuse = |why| Misuse { place: Some((cpu, state.next)), why };
            if state.next < self.program.scripts[cpu].len() {
                return Err(misuse("CPUs wait for each other's tasks"));
            }
            if state.section != Section::None {
                return Err(misuse("what was opened is not closed"));
            }
        }
        Ok(())
    }

    fn step(&mut self, cpu: usize, statement: Statement) -> Step {
        use Statement::{Access, Flush, Interrupt, Kernel, LookIntoActiveMm, Online};
        let state = &self.cpus[cpu];
        only_if(!state.offline || statement == Online, "the CPU is offline")?;
        let fits = match (state.section, statement) {
            (Section::None, _) | (_, LookIntoActiveMm | Interrupt(..)) => true,
            (Section::Lock(_), Access) => true,
            (Section::Lock(_), Kernel(statement)) => {
                use KernelStatement::{ClearCid, Leave, LoadUser, StoreUser, Unlock};
                matches!(statement, StoreUser(_) | LoadUser(_) | Leave | ClearCid(_) | Unlock(_))
            }
            (Section::Temporary(_), Flush(..) | Kernel(KernelStatement::UnuseTemporaryMm)) => true,
            _ => false,
        };
        only_if(fits, "this must not be done where preemption is off")?;
        if let Kernel(statement) = statement {
            return self.kernel(cpu, statement);
        }
        self.path(cpu, statement)
    }

    fn path(&mut self, cpu: usize, statement: Statement) -> Step {
        use Statement::*;
        match statement {
            Switch(next) => self.switch(cpu, next)?,
            Exit => {
                let owns = self.all(cpu, |has| matches!(has, Has::Own(_)) && !self.is_counted(has));
                only_if(owns, "the task has no address space of its own to give up, or CPUs keep ids of it")?;
                self.now_has(cpu, Has::Nothing);
            }
            Exec(mm) => {
                only_if(self.facts.made.get(mm) == Some(&true), "there is no such mm")?;
                let can = |task: usize| match self.has[task] {
                    Has::Own(_) => !self.is_counted(self.has[task]),
                    Has::Nothing => self.is_kthread(task),
                    _ => false,
                };
                only_if(self.cpus[cpu].running.iter().all(|&task| can(task)), "the task cannot exec")?;
                self.cpus[cpu].clean = false;
                self.now_has(cpu, Has::Own(mm));
            }
            UseMm(mm) => {
                only_if(self.is_idle_kthread(cpu), "only a kernel thread without an address space adopts one")?;
                only_if(self.is_kept(cpu, mm) && self.is_plain(mm), "nobody keeps a user of it")?;
                self.cpus[cpu].clean = false;
                self.now_has(cpu, Has::Adopted(mm));
            }
            UnuseMm => {
                let adopted = self.all(cpu, |has| matches!(has, Has::Adopted(_)));
                only_if(adopted && !self.cpus[cpu].preempted, "it has adopted none")?;
                self.now_has(cpu, Has::Nothing);
            }
            Mmput(mm) => {
                let last = !self.facts.permanent[mm] && !self.later(cpu, |one| one == Mmput(mm));
                let adopted = self.has.contains(&Has::Adopted(mm));
                only_if(!(last && adopted), "who has adopted it relies on this user")?;
            }
            Mmdrop(_) | LookIntoActiveMm => {}
            Flush(mm, _) => only_if(self.is_kept_or_own(cpu, mm) && self.is_no_temporary(mm), "nobody keeps it")?,
            Munmap(mm) | Unmap(mm) => {
                only_if(self.is_kept_or_own(cpu, mm) && self.is_no_temporary(mm), "nobody keeps it")?;
                let mine = self.changed[mm].is_none_or(|(by, half_done)| by == cpu && !half_done);
                only_if(mine, "another one may be unmapping pages of it")?;
                self.changed[mm] = Some((cpu, self.cpus[cpu].preempted));
            }
            Access => only_if(self.is_user(cpu), "the task has no user memory")?,
            Revive(mm) => {
                only_if(self.is_idle_kthread(cpu), "only a kernel thread without an address space does this")?;
                let held = self.is_kept(cpu, mm) || self.later(cpu, |one| one == Mmdrop(mm));
                only_if(held && self.is_plain(mm), "nobody keeps a reference to it")?;
                self.cpus[cpu].clean = false;
            }
            Offline => {
                only_if(self.is_idle(cpu) && !self.cpus[cpu].arrives, "a CPU goes offline from its idle task")?;
                self.cpus[cpu].offline = true;
            }
            Online => {
                only_if(self.cpus[cpu].offline, "the CPU is online")?;
                self.cpus[cpu].offline = false;
            }
            DeepIdle => only_if(self.is_idle(cpu), "only the idle task idles")?,
            Interrupt(source, what) => self.interrupt(cpu, source, what)?,
            Preempt(task) => self.preempt(cpu, task)?,
            Migrate(task) => return self.migrate(cpu, task),
            Goto(_) => return Err("a loop need not end"),
            Kernel(_) => unreachable!("done before"),
        }
        Ok(Progress::Done)
    }

    fn kernel(&mut self, cpu: usize, statement: KernelStatement) -> Step {
        use KernelStatement::*;
        let state = &self.cpus[cpu];
        match statement {
            UseTemporaryMm(mm) => {
                only_if(
                    !state.preempted && self.is_kept(cpu, mm) && !self.facts.made[mm],
                    "nobody keeps a user of it",
                )?;
                self.cpus[cpu].section = Section::Temporary(mm);
                self.cpus[cpu].clean = false;
            }
            UnuseTemporaryMm => {
                let Section::Temporary(mm) = state.section else { return Err("no temporary tables are loaded") };
                only_if(self.is_kept(cpu, mm), "nobody keeps a user of it")?;
                self.cpus[cpu].section = Section::None;
            }
            TextPoke(mm) => {
                only_if(self.is_kept(cpu, mm) && !self.facts.made[mm], "nobody keeps a user of it")?;
                self.cpus[cpu].clean = false;
            }
            StoreUser(_) | LoadUser(_) => only_if(self.is_user(cpu), "the task has no user memory")?,
            Membarrier(mm) => only_if(self.all(cpu, |has| has == Has::Own(mm)), "it is not the running task's")?,
            ClearCid(_) => {
                let is_there = self.program.kernel.cid.is_some_and(|mm| !self.facts.made[mm]);
                only_if(is_there, "CPUs keep no ids")?;
            }
            Lock(lock) | LockIrq(lock) => {
                only_if(!state.preempted, "the task may be preempted before it has the lock, and another goes on")?;
                self.cpus[cpu].section = Section::Lock(lock);
            }
            Unlock(lock) => {
                only_if(state.section == Section::Lock(lock), "the lock is not held")?;
                self.cpus[cpu].section = Section::None;
            }
            Leave => {}
            WalkLeadersStopped => only_if(state.clean, "the CPU may be on one of these address spaces")?,
            SaveRoot | LoadRoot(_) | LoadSavedRoot | MembarrierOfTasks(_) | OfflineBorrowing | OfflineFirst
            | OfflineLookingEarly | MunmapFreesFirst(_) | MmdropTwice(_) | WalkLeaders => {
                return Err("it is there to be caught");
            }
            MustBeReaped(_) => return Err("nothing says that this must hold"),
        }
        Ok(Progress::Done)
    }

    fn interrupt(&mut self, cpu: usize, source: Source, what: InInterrupt) -> Result<(), &'static str> {
        self.cpus[cpu].arrives = true;
        let fits = match (source, what) {
            (Source::Irq | Source::Nmi, InInterrupt::LookIntoActiveMm) => true,
            (Source::Irq | Source::Nmi, InInterrupt::Kernel(KernelInterrupt::ReadUserChecked)) => true,
            (Source::Irq, InInterrupt::Kernel(KernelInterrupt::Leave)) => true,
            (Source::Irq | Source::Softirq, InInterrupt::Mmdrop(mm)) => self.facts.permanent[mm],
            _ => false,
        };
        only_if(fits, "this must not be done in such an interrupt")
    }

    fn switch(&mut self, cpu: usize, next: usize) -> Result<(), &'static str> {
        if next >= self.program.tasks.len() {
            only_if(next == self.program.idle(cpu), "an idle task stays on its CPU")?;
            let is_last = self.cpus[cpu].next + 1 == self.program.scripts[cpu].len();
            // An idle task that is preempted is not switched to again by itself, and what it had begun is never done.
            only_if(!self.cpus[cpu].preempted || is_last, "the idle task may be preempted")?;
        } else {
            self.check_is_here(cpu, next)?;
        }
        self.runs(cpu, next);
        Ok(())
    }

    fn preempt(&mut self, cpu: usize, task: usize) -> Result<(), &'static str> {
        self.check_is_here(cpu, task)?;
        let state = &self.cpus[cpu];
        let first_user = self.program.tasks.len();
        let adopted = |task: &usize| matches!(self.has[*task], Has::Adopted(_));
        only_if(state.running.iter().all(|&task| task < first_user), "the idle task may be preempted")?;
        only_if(state.running != [task], "the task preempts itself")?;
        only_if(!state.running.iter().chain([&task]).any(adopted), "a task with an adopted address space")?;
        self.cpus[cpu].preempted = true;
        self.cpus[cpu].arrives = true;
        self.runs(cpu, task);
        Ok(())
    }

    fn migrate(&mut self, cpu: usize, task: usize) -> Step {
        only_if(!self.cpus[cpu].preempted, "who takes the task over may be preempted in that")?;
        if let Some(home) = self.facts.home[task] {
            let state = &self.cpus[home];
            if state.running.contains(&task) {
                only_if(!state.preempted, "the task may be half done with what its CPU's script says")?;
                // At its end it makes way.
                if state.next < self.program.scripts[home].len() {
                    return Ok(Progress::Waits);
                }
            }
        }
        self.runs(cpu, task);
        Ok(Progress::Done)
    }

    /// That the task has come to this CPU, if it comes here at all.
    fn check_is_here(&self, cpu: usize, task: usize) -> Result<(), &'static str> {
        let comes = self.facts.moves[task].filter(|&(to, _)| to == cpu);
        only_if(comes.is_none_or(|(_, at)| at < self.cpus[cpu].next), "the task has not come here yet")
    }

    /// The CPU goes on with a task; once it may have been preempted, that is one more that may be running.
    fn runs(&mut self, cpu: usize, task: usize) {
        let state = &mut self.cpus[cpu];
        if !state.preempted {
            state.running.clear();
        }
        if !state.running.contains(&task) {
            state.running.push(task);
        }
        state.clean &= self.has[task] == Has::Nothing;
    }

    /// Whoever runs has this from here on.
    fn now_has(&mut self, cpu: usize, has: Has) {
        let running = &self.cpus[cpu].running;
        let has = if running.len() == 1 { has } else { Has::Unknown };
        for &task in running {
            self.has[task] = has;
        }
    }

    fn all(&self, cpu: usize, holds: impl Fn(Has) -> bool) -> bool {
        self.cpus[cpu].running.iter().all(|&task| holds(self.has[task]))
    }

    fn is_user(&self, cpu: usize) -> bool {
        self.all(cpu, |has| matches!(has, Has::Own(_) | Has::Adopted(_)))
    }

    fn is_kthread(&self, task: usize) -> bool {
        self.program.tasks.get(task).is_some_and(|task| task.mm.is_none())
    }

    fn is_idle_kthread(&self, cpu: usize) -> bool {
        let state = &self.cpus[cpu];
        !state.preempted && self.is_kthread(state.running[0]) && self.has[state.running[0]] == Has::Nothing
    }

    fn is_idle(&self, cpu: usize) -> bool {
        self.cpus[cpu].running == [self.program.idle(cpu)]
    }

    /// CPUs keep ids of it.
    fn is_counted(&self, has: Has) -> bool {
        matches!(has, Has::Own(mm) if self.program.kernel.cid == Some(mm))
    }

    fn is_no_temporary(&self, mm: usize) -> bool {
        !self.facts.temporary[mm]
    }

    /// Anybody who has a user may adopt it.
    fn is_plain(&self, mm: usize) -> bool {
        !self.facts.made[mm] && self.is_no_temporary(mm) && self.program.kernel.cid != Some(mm)
    }

    fn later(&self, cpu: usize, is_it: impl Fn(Statement) -> bool) -> bool {
        let state = &self.cpus[cpu];
        !state.preempted && self.program.scripts[cpu][state.next + 1..].iter().any(|&one| is_it(one))
    }

    /// Somebody keeps a user until this statement is over: for ever, or until this script puts it.
    fn is_kept(&self, cpu: usize, mm: usize) -> bool {
        self.facts.permanent[mm] || self.later(cpu, |one| one == Statement::Mmput(mm))
    }

    fn is_kept_or_own(&self, cpu: usize, mm: usize) -> bool {
        self.is_kept(cpu, mm) || self.all(cpu, |has| has == Has::Own(mm) || has == Has::Adopted(mm))
    }
}

/// A duel by sys_membarrier: on one CPU a user of an address space stores X and loads Y, on another one stores Y, calls
/// membarrier, and loads X. Never may both have read 0.
///
/// `mm` is the address space, `slow` the CPU that calls, `fast` the other one. The words are 0 and 1.
pub fn duel(mm: usize, slow: usize, fast: usize) -> ([Statement; 3], [Statement; 2], Vec<Read>) {
    use KernelStatement::{LoadUser, Membarrier, StoreUser};
    let (x, y) = (0, 1);
    let reads = vec![Read { cpu: slow, word: x, value: 0 }, Read { cpu: fast, word: y, value: 0 }];
    (
        [StoreUser(y), Membarrier(mm), LoadUser(x)].map(Statement::Kernel),
        [StoreUser(x), LoadUser(y)].map(Statement::Kernel),
        reads,
    )
}

/// Whether the words are used for one duel and for nothing else. That the tasks are users of the mm is asked of each access:
/// there is one address space with such words.
fn is_duel(program: &Program) -> bool {
    let is_of = |statement: &Statement| {
        use KernelStatement::{LoadUser, Membarrier, StoreUser};
        matches!(statement, Statement::Kernel(StoreUser(_) | LoadUser(_) | Membarrier(_)))
    };
    let of_cpu = |script: &Vec<Statement>| script.iter().copied().filter(is_of).collect::<Vec<_>>();
    let scripts: Vec<Vec<Statement>> = program.scripts.iter().map(of_cpu).collect();
    // Whoever may be preempted may be in the middle of one access while another does the next.
    let preempts = |cpu: usize| program.scripts[cpu].iter().any(|one| matches!(one, Statement::Preempt(_)));
    let cpus = 0..program.cpus();
    let pairs = cpus.clone().flat_map(|slow| cpus.clone().map(move |fast| (slow, fast)));
    let mut duels = pairs.filter(|(slow, fast)| slow != fast).filter_map(|(slow, fast)| {
        let Some(&Statement::Kernel(KernelStatement::Membarrier(mm))) = scripts[slow].get(1) else { return None };
        Some((slow, fast, mm, duel(mm, slow, fast)))
    });
    duels.any(|(slow, fast, mm, (of_slow, of_fast, reads))| {
        let others = cpus.clone().filter(|&cpu| cpu != slow && cpu != fast);
        let all_of_mm = program.tasks.iter().all(|task| task.mm.is_none_or(|of| of == mm));
        let none_leaves = !program
            .scripts
            .iter()
            .flatten()
            .any(|&statement| matches!(statement, Statement::Exec(_) | Statement::UseMm(_)));
        scripts[slow] == of_slow
            && scripts[fast] == of_fast
            && others.map(|cpu| &scripts[cpu]).all(Vec::is_empty)
            && program.kernel.forbidden == [reads]
            && !preempts(slow)
            && !preempts(fast)
            && all_of_mm
            && none_leaves
    })
}
