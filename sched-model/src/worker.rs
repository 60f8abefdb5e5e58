//! The worker of the model's kernel, and its clock.
//!
//! Where CPUs have scripts the worker has a CPU of its own, so that all that it does can fall between any two steps of the
//! others. To ask for it is to raise an interrupt there, which comes at any later step. Where tasks roam, any kernel thread
//! that runs does the work, on whatever CPU and with whatever address space that CPU has borrowed, as kworkers do. So nobody works
//! as long as every task has an address space of its own, and when all are dead idle tasks do what is left, which no kernel's would.
//!
//! To ask for it at a time is to raise an interrupt, and when that comes the clock has come to the time: time passes only
//! when somebody waits for it, and as late as can be. It comes to the worker's CPU or, where threads work, to the first. Where
//! threads work and the strategy never looks at the time, it comes with the work, and no interrupt says so. Two times that are both to
//! come are never there at once: all that is asked for lies as far ahead.

use lazytlb_core::memory::{AtomicWord, LocalWord, Memory, Ordering::Relaxed};
use lazytlb_machine::{Machine, ObjectKind, Sim, SimLocal, SimWord};

use crate::program::Program;

/// The vector by which work arrives.
const WORK: u8 = 1;
/// The vector by which it arrives when a time has come.
const TIMER: u8 = 2;
/// The CPU that the clock's interrupt comes to where threads work.
const CLOCK_CPU: usize = 0;

/// The worker and the clock.
#[derive(Debug)]
pub(crate) struct Worker {
    jiffies: SimWord<usize>,
    works: Works,
}

/// Who works, and how it is known that there is something to do.
#[derive(Debug)]
enum Works {
    OnOwnCpu {
        cpu: usize,
        /// The earliest time that was asked for since the timer fired last; 0 for none.
        timer: SimLocal<usize>,
        /// Whether there is work to do.
        asked: SimLocal<usize>,
    },
    Threads {
        /// From when on whoever comes first does the work; 0 for never. Who asks while it is not taken has asked for the same.
        due: SimWord<usize>,
        /// Whether an interrupt moves the clock.
        ticks: bool,
    },
}

impl Worker {
    /// The CPU that it has for itself on the machine of a program.
    pub(crate) fn cpu_in(program: &Program) -> Option<usize> {
        program.roam.is_none().then(|| program.cpus())
    }

    pub(crate) fn place(machine: &Machine, program: &Program, ticks: bool) -> &'static Worker {
        // 0 is no time.
        let jiffies = AtomicWord::new(1);
        let works = match Self::cpu_in(program) {
            Some(cpu) => Works::OnOwnCpu { cpu, timer: LocalWord::new(0), asked: LocalWord::new(0) },
            None => Works::Threads { due: AtomicWord::new(0), ticks },
        };
        let worker: *const Worker = machine.place("worker", ObjectKind::PerCpu, Worker { jiffies, works });
        // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
        unsafe { &*worker }
    }

    /// Where the time is, and where a later one is kept.
    pub(crate) fn clock_and_timer(&self) -> [usize; 2] {
        let timer = match &self.works {
            Works::OnOwnCpu { timer, .. } => (&raw const *timer).addr(),
            Works::Threads { due, .. } => (&raw const *due).addr(),
        };
        [(&raw const self.jiffies).addr(), timer]
    }

    /// The worker's own CPU.
    pub(crate) fn own_cpu(&self) -> Option<usize> {
        match self.works {
            Works::OnOwnCpu { cpu, .. } => Some(cpu),
            Works::Threads { .. } => None,
        }
    }

    /// Whether an interrupt is for it.
    pub(crate) fn is_for_it(&self, cpu: usize, vector: u8) -> bool {
        match self.works {
            Works::OnOwnCpu { cpu: own, .. } => cpu == own,
            Works::Threads { .. } => cpu == CLOCK_CPU && vector == TIMER,
        }
    }

    /// Its life on a CPU of its own: it does the work whenever it is asked to.
    pub(crate) fn run(&self, work: impl Fn()) {
        let Works::OnOwnCpu { asked, .. } = &self.works else { unreachable!("threads have lives of their own") };
        loop {
            Machine::with(|machine| machine.checkpoint(0, true));
            if asked.peek() != 0 {
                // That it was asked is something that it has seen.
                Machine::with(|machine| machine.checkpoint(1, false));
                asked.poke(0);
                work();
            } else {
                Machine::with(Machine::idle);
            }
        }
    }

    /// A thread takes what there is to do. Says whether there is something.
    pub(crate) fn take_work(&self) -> bool {
        let Works::Threads { due, ticks } = &self.works else { return false };
        Sim.outcome_of(|| {
            let mut is_due = false;
            Machine::with(|machine| {
                machine.update(due, |at| {
                    let now = machine.look(&self.jiffies);
                    is_due = at != 0 && (!ticks || at <= now);
                    if is_due && !ticks {
                        machine.put(&self.jiffies, at.max(now));
                    }
                    if is_due { 0 } else { at }
                });
            });
            is_due
        })
    }

    /// An interrupt has come: all that it does is one step with its arrival. What was asked for may lie in the past.
    pub(crate) fn interrupt(&self, vector: u8) {
        Machine::with(|machine| match &self.works {
            Works::OnOwnCpu { timer, asked, .. } => {
                if vector == TIMER {
                    machine.put(&self.jiffies, timer.peek().max(self.jiffies.peek()));
                    timer.poke(0);
                }
                asked.poke(1);
            }
            Works::Threads { due, .. } => {
                let now = machine.look(&self.jiffies);
                machine.put(&self.jiffies, machine.look(due).max(now));
            }
        });
    }

    pub(crate) fn queue_work(&self) {
        Machine::with(|machine| match &self.works {
            Works::OnOwnCpu { cpu, .. } => machine.send_ipi(1 << cpu, WORK),
            Works::Threads { due, .. } => Sim.outcome_of(|| machine.update(due, |_| machine.look(&self.jiffies))),
        });
    }

    pub(crate) fn jiffies(&self) -> usize {
        self.jiffies.load(Relaxed)
    }

    /// Setting the timer is part of the step that asks for its interrupt.
    pub(crate) fn queue_work_at(&self, at: usize) {
        let is_earlier = |before: usize| before == 0 || at < before;
        Machine::with(|machine| match &self.works {
            Works::OnOwnCpu { cpu, timer, .. } => {
                machine.send_ipi(1 << cpu, TIMER);
                if is_earlier(timer.peek()) {
                    timer.poke(at);
                }
            }
            Works::Threads { due, ticks } => {
                let set = |machine: &Machine| {
                    if !is_earlier(machine.look(due)) {
                        return 0;
                    }
                    machine.put(due, at);
                    u64::from(*ticks && at > machine.look(&self.jiffies)) << CLOCK_CPU
                };
                Sim.outcome_of(|| machine.send_ipi_to(set, TIMER));
            }
        });
    }
}
