//! Scripts that are wrong in every execution: what is found then is the script's fault and says nothing of a strategy.
//!
//! [`well_formed`](crate::well_formed) refuses whatever it cannot tell to be right. Here it is the other way round: refused is only
//! what cannot be right, whatever the CPUs do. A CPU's script is followed from its start as long as it is known which task does the
//! next statement: up to a `preempt` or a `goto`.
//!
//! | statement | is wrong where |
//! | --- | --- |
//! | `unuse-temporary-mm` | the CPU has no temporary tables loaded |
//! | `use-temporary-mm`, `text-poke`, `switch`, `migrate`, `exit`, `exec`, `use`, `unuse`, `offline` | it has |
//! | `exit` | the task has no address space |
//! | `offline` | the CPU runs a user task |
//! | `switch`, `exit`, `exec`, `offline` | the CPU holds a lock |
//! | any but `online` | the CPU is offline |
//! | `online` | it is not |
//! | `migrate` | the task runs on this CPU; or on another that waits for a task itself, all in a circle |
//! | `unlock` | this CPU has not locked it |
//! | `lock`, `lock-irq` | it has |
//! | `access`, `store-user`, `load-user` | the task has no address space |
//! | `use` | the task has one |
//! | `unuse` | the task has adopted none |
//! | `membarrier` | the address space is not the task's |
//! | `load-saved-root` | no script saves one |
//! | `munmap frees-first`, `mmdrop twice`, `membarrier of-tasks`, `offline borrowing`, `offline first`, `offline looking-early` | anywhere: they are there to be caught |

use crate::kernel::KernelStatement;
use crate::program::{Program, Statement};
use crate::well_formed::{Has, Misuse, only_if};

/// The first statement that is wrong in every execution, if there is one.
pub fn find(program: &Program) -> Option<Misuse> {
    Follower::new(program).follow().err()
}

/// How far a CPU has been followed, and what is known of it there.
struct Cpu {
    next: usize,
    /// The task that does the next statement, where it is known.
    running: Option<usize>,
    /// What it does from here on depends on the execution.
    lost: bool,
    offline: bool,
    temporary: bool,
    /// The locks that it has locked.
    locked: Vec<usize>,
}

struct Follower<'a> {
    program: &'a Program,
    /// Of each task, idle tasks included.
    has: Vec<Has>,
    /// The one CPU that runs each task, if no other can.
    home: Vec<Option<usize>>,
    cpus: Vec<Cpu>,
}

type Step = Result<(), &'static str>;

impl<'a> Follower<'a> {
    fn new(program: &'a Program) -> Self {
        let cpu = |cpu: usize| Cpu {
            next: 0,
            running: Some(program.first(cpu)),
            lost: false,
            offline: false,
            temporary: false,
            locked: Vec::new(),
        };
        Follower {
            program,
            has: Has::at_start(program),
            home: (0..program.tasks.len() + program.cpus()).map(|task| home(program, task)).collect(),
            cpus: (0..program.cpus()).map(cpu).collect(),
        }
    }

    /// Each CPU goes on until it waits for another, or is lost.
    fn follow(&mut self) -> Result<(), Misuse> {
        loop {
            let mut moved = false;
            for cpu in 0..self.cpus.len() {
                while let Some(statement) = self.statement(cpu).filter(|&one| !self.waits(cpu, one)) {
                    let place = Some((cpu, self.cpus[cpu].next));
                    self.step(cpu, statement).map_err(|why| Misuse { place, why })?;
                    self.cpus[cpu].next += 1;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        match (0..self.cpus.len()).find(|&cpu| self.statement(cpu).is_some()) {
            Some(cpu) => {
                Err(Misuse { place: Some((cpu, self.cpus[cpu].next)), why: "CPUs wait for each other's tasks" })
            }
            None => Ok(()),
        }
    }

    /// What a CPU does next, where that is known.
    fn statement(&self, cpu: usize) -> Option<Statement> {
        let state = &self.cpus[cpu];
        self.program.scripts[cpu].get(state.next).copied().filter(|_| !state.lost)
    }

    /// Whether it waits for a task that another CPU runs and does not let go before its own next statement.
    fn waits(&self, cpu: usize, statement: Statement) -> bool {
        let Statement::Migrate(task) = statement else { return false };
        (0..self.cpus.len())
            .any(|other| other != cpu && self.cpus[other].running == Some(task) && self.statement(other).is_some())
    }

    fn step(&mut self, cpu: usize, statement: Statement) -> Step {
        use Statement::{Exec, Exit, Goto, Migrate, Offline, Online, Preempt, Switch, UnuseMm, UseMm};
        let state = &mut self.cpus[cpu];
        only_if(!state.offline || statement == Online, "the CPU is offline: only `online` can follow")?;
        let changes = matches!(statement, Switch(_) | Migrate(_) | Exit | Exec(_) | UseMm(_) | UnuseMm | Offline);
        only_if(!changes || !state.temporary, "temporary tables are loaded, and preemption is off")?;
        let sleeps = matches!(statement, Switch(_) | Exit | Exec(_) | Offline);
        only_if(!sleeps || state.locked.is_empty(), "the CPU holds a lock")?;
        match statement {
            Offline => {
                only_if(!matches!(self.has(cpu), Has::Own(_)), "the CPU runs a user task")?;
                self.cpus[cpu].offline = true;
            }
            Online => {
                only_if(state.offline, "the CPU is online")?;
                state.offline = false;
            }
            Preempt(_) | Goto(_) => state.lost = true,
            Switch(task) => state.running = Some(task).filter(|&task| self.home[task] == Some(cpu)),
            Migrate(task) => {
                only_if(state.running != Some(task), "the task runs on this CPU")?;
                state.running = None;
            }
            Statement::Kernel(statement) => return self.kernel(cpu, statement),
            _ => return self.of_task(cpu, statement),
        }
        Ok(())
    }

    /// What depends on the address space of the task that runs.
    fn of_task(&mut self, cpu: usize, statement: Statement) -> Step {
        use Statement::{Access, Exec, Exit, UnuseMm, UseMm};
        let has = self.has(cpu);
        match statement {
            Access => only_if(has != Has::Nothing, "the task has no user memory")?,
            Exit => {
                only_if(has != Has::Nothing, "the task has no address space")?;
                self.now_has(cpu, Has::Nothing);
            }
            Exec(mm) => self.now_has(cpu, Has::Own(mm)),
            UseMm(mm) => {
                only_if(matches!(has, Has::Nothing | Has::Unknown), "the task has an address space already")?;
                self.now_has(cpu, Has::Adopted(mm));
            }
            UnuseMm => {
                only_if(matches!(has, Has::Adopted(_) | Has::Unknown), "the task has adopted no address space")?;
                self.now_has(cpu, Has::Nothing);
            }
            _ => {}
        }
        Ok(())
    }

    fn kernel(&mut self, cpu: usize, statement: KernelStatement) -> Step {
        use KernelStatement::*;
        if matches!(
            statement,
            MunmapFreesFirst(_)
                | MmdropTwice(_)
                | MembarrierOfTasks(_)
                | OfflineBorrowing
                | OfflineFirst
                | OfflineLookingEarly
        ) {
            return Err("it is there to be caught: the header must say `mutant caller`");
        }
        let has = self.has(cpu);
        let state = &mut self.cpus[cpu];
        match statement {
            UseTemporaryMm(_) => {
                only_if(!state.temporary, "temporary tables are loaded already")?;
                state.temporary = true;
            }
            UnuseTemporaryMm => {
                only_if(state.temporary, "no temporary tables are loaded")?;
                state.temporary = false;
            }
            TextPoke(_) => only_if(!state.temporary, "temporary tables are loaded already")?,
            Lock(lock) | LockIrq(lock) => {
                only_if(!state.locked.contains(&lock), "the CPU has locked it already, and waits for itself")?;
                state.locked.push(lock);
            }
            Unlock(lock) => {
                only_if(state.locked.contains(&lock), "the lock is not held")?;
                state.locked.retain(|&held| held != lock);
            }
            StoreUser(_) | LoadUser(_) => only_if(has != Has::Nothing, "the task has no user memory")?,
            Membarrier(mm) => {
                let is_its_own = [Has::Own(mm), Has::Adopted(mm), Has::Unknown].contains(&has);
                only_if(is_its_own, "the address space is not the running task's")?;
            }
            LoadSavedRoot => {
                let saves = |&statement: &Statement| statement == Statement::Kernel(SaveRoot);
                only_if(self.program.scripts.iter().flatten().any(saves), "no task has saved a root")?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What the running task has; nothing is known of one that another CPU may have run before.
    fn has(&self, cpu: usize) -> Has {
        let running = self.cpus[cpu].running.filter(|&task| self.home[task] == Some(cpu));
        running.map_or(Has::Unknown, |task| self.has[task])
    }

    fn now_has(&mut self, cpu: usize, has: Has) {
        match self.cpus[cpu].running {
            Some(task) => self.has[task] = has,
            // Whoever could not be switched to, the idle task runs instead.
            None => self.has[self.program.idle(cpu)] = Has::Unknown,
        }
    }
}

/// The one CPU that is told to run a task, if no other is.
fn home(program: &Program, task: usize) -> Option<usize> {
    let told = |statement: &Statement| matches!(*statement, Statement::Switch(one) | Statement::Preempt(one) | Statement::Migrate(one) if one == task);
    let mut cpus =
        (0..program.cpus()).filter(|&cpu| program.first(cpu) == task || program.scripts[cpu].iter().any(told));
    let home = cpus.next();
    home.filter(|_| cpus.next().is_none())
}
