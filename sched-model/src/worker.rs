//! The worker of the model's kernel, and its clock.
//!
//! It has a CPU of its own, so that all that it does can fall between any two steps of the others. To ask for it is to
//! raise an interrupt there, which comes at any later step. To ask for it at a time is the same, and when the interrupt
//! comes the clock has come to that time: time passes only when somebody waits for it, and as late as can be.

use lazytlb_core::memory::{AtomicWord, LocalWord, Ordering::Relaxed};
use lazytlb_machine::{Machine, ObjectKind, SimLocal, SimWord};

/// The vector by which work arrives.
const WORK: u8 = 1;
/// The vector by which it arrives when a time has come.
const TIMER: u8 = 2;

/// The worker and the clock.
#[derive(Debug)]
pub(crate) struct Worker {
    cpu: usize,
    jiffies: SimWord<usize>,
    /// The earliest time that was asked for since the timer fired last; 0 for none.
    timer: SimLocal<usize>,
    /// Whether there is work to do.
    asked: SimLocal<usize>,
}

impl Worker {
    pub(crate) fn place(machine: &Machine, cpu: usize) -> &'static Worker {
        // 0 is no time.
        let (jiffies, timer) = (AtomicWord::new(1), LocalWord::new(0));
        let worker: *const Worker =
            machine.place("worker", ObjectKind::PerCpu, Worker { cpu, jiffies, timer, asked: LocalWord::new(0) });
        // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
        unsafe { &*worker }
    }

    /// Where the time is, and where a later one is kept.
    pub(crate) fn clock_and_timer(&self) -> [usize; 2] {
        [(&raw const self.jiffies).addr(), (&raw const self.timer).addr()]
    }

    /// The worker's CPU.
    pub(crate) fn cpu(&self) -> usize {
        self.cpu
    }

    /// Its life: it does the work whenever it is asked to.
    pub(crate) fn run(&self, work: impl Fn()) {
        loop {
            Machine::with(|machine| machine.checkpoint(0, true));
            if self.asked.peek() != 0 {
                // That it was asked is something that it has seen.
                Machine::with(|machine| machine.checkpoint(1, false));
                self.asked.poke(0);
                work();
            } else {
                Machine::with(Machine::idle);
            }
        }
    }

    /// An interrupt has come to its CPU.
    pub(crate) fn interrupt(&self, vector: u8) {
        if vector == TIMER {
            let at = self.timer.peek();
            self.timer.poke(0);
            // What was asked for may lie in the past.
            self.jiffies.store(at.max(self.jiffies.peek()), Relaxed);
        }
        self.asked.poke(1);
    }

    pub(crate) fn queue_work(&self) {
        Machine::with(|machine| machine.send_ipi(1 << self.cpu, WORK));
    }

    pub(crate) fn jiffies(&self) -> usize {
        self.jiffies.load(Relaxed)
    }

    /// Setting the timer is part of the step that asks for its interrupt.
    pub(crate) fn queue_work_at(&self, at: usize) {
        Machine::with(|machine| machine.send_ipi(1 << self.cpu, TIMER));
        let before = self.timer.peek();
        if before == 0 || at < before {
            self.timer.poke(at);
        }
    }
}
