//! The scheduler: run queues with their locks, switches, preemption, migration, and the ways out of an interrupt.
//!
//! Each CPU's run queue is locked from before the switch until the new task has taken over, interrupts off (sections 5.1
//! and 5.2 of the Linux scheduler's contract: `context_switch` under `rq->lock`, `finish_task_switch` on the new stack).
//! `on_cpu` says that a task's stack is in use; another CPU may take the task only when it is clear.

use lazytlb_core::memory::{AtomicWord, Label, LocalWord, Memory, Ordering::*};
use lazytlb_core::platform::{IrqsOff, Platform};
use lazytlb_machine::{Machine, Sim, SimLocal, SimWord};

use crate::accounted::Accounted;
use crate::platform::{CALL_VECTOR, Lab, MmData, address};
use crate::program::{Source, Statement};
use crate::roam::knows;
use crate::world::World;

/// The lock of a run queue. Full barrier, as Linux has it (`smp_mb__after_spinlock` in `__schedule`): membarrier needs one
/// between a user's last access and the store that says that the CPU runs it no more.
const RQ_LOCK: Label = Label::new("sched.rq_lock");

/// What the scheduler keeps for each CPU.
#[derive(Debug)]
pub(crate) struct Runqueue {
    lock: SimWord<usize>,
    /// The task that the CPU is switching away from.
    prev: SimLocal<*mut Scheduled>,
    /// How far the CPU has come in its script.
    pub(crate) position: SimLocal<usize>,
    /// One more than the task that shall preempt the running one; 0 if none.
    need_resched: SimLocal<usize>,
    /// Softirqs that were raised, a bit for each vector.
    softirqs: SimLocal<usize>,
    /// Tasks that were preempted here and have not run here since, a bit each.
    preempted: SimLocal<usize>,
}

impl Runqueue {
    pub(crate) fn new() -> Self {
        let local = || LocalWord::new(0);
        Runqueue {
            lock: AtomicWord::new(0),
            prev: LocalWord::new(core::ptr::null_mut()),
            position: local(),
            need_resched: local(),
            softirqs: local(),
            preempted: local(),
        }
    }

    pub(crate) fn lock(&self) {
        Sim.spin_until(|| self.lock.compare_exchange_full(0, 1, RQ_LOCK).ok());
    }

    fn unlock(&self) {
        self.lock.store(0, Release);
    }
}

/// What the scheduler keeps for each task.
#[derive(Debug)]
pub(crate) struct Scheduled {
    /// Whether its stack is in use.
    pub(crate) on_cpu: SimWord<usize>,
    /// Where it ran last.
    pub(crate) cpu: SimWord<usize>,
}

impl Scheduled {
    pub(crate) fn new() -> Self {
        Scheduled { on_cpu: AtomicWord::new(0), cpu: AtomicWord::new(0) }
    }
}

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// From one task to another on this CPU; to its idle task if the other one cannot be had. Says whether it could.
    pub(crate) fn switch(&self, task: usize, next: usize) -> bool {
        if task == next {
            return true;
        }
        Machine::with(|machine| machine.irq_save(Label::NONE));
        self.schedule(task, next)
    }

    /// The switch, and the other task's way to switch back. Context: interrupts off; they are on when it returns.
    fn schedule(&self, task: usize, wanted: usize) -> bool {
        let cpu = Machine::with(Machine::this_cpu);
        // An idle task is that of the CPU where the switch happens: who asked for it may have been moved since.
        let wanted = if self.program.is_idle(wanted) { self.program.idle(cpu) } else { wanted };
        let rq = &self.rqs[cpu];
        rq.lock();
        rq.preempted.poke(rq.preempted.peek() & !(1 << wanted));
        // Whoever sets `on_cpu` has the task. Linux has only one CPU's queue that it can be picked from.
        let had = self.scheduled[wanted].on_cpu.compare_exchange(0, 1, Acquire, Relaxed).is_ok();
        let next = if had { wanted } else { self.program.idle(cpu) };
        if next == task {
            rq.unlock();
            Machine::with(|machine| machine.irq_restore(true));
            return had;
        }
        self.switch_to(task, next);
        had
    }

    /// Gives the CPU to a task that is ours by now, and returns when this one runs again. Context: interrupts off, the run
    /// queue locked; interrupts are on when it returns.
    pub(crate) fn switch_to(&self, task: usize, next: usize) {
        let cpu = Machine::with(Machine::this_cpu);
        // SAFETY: the caller has disabled them.
        let irqs_off = unsafe { IrqsOff::assume(Lab::NEW) };
        self.put_mm_cid(cpu);
        // SAFETY: `task` runs here, and `next` is ours.
        unsafe { self.switcher.context_switch(&irqs_off, &self.tasks[task], &self.tasks[next]) };
        self.switch_mm_cid(cpu, next);
        self.rqs[cpu].prev.set((&raw const self.scheduled[task]).cast_mut());
        match self.queue {
            // All that it needs when it comes back is with the CPU.
            Some(_) => Machine::with(|machine| machine.checkpoint(knows::WHERE_IT_IS, false)),
            None => {
                self.scheduled[next].on_cpu.store(1, Relaxed);
                self.scheduled[next].cpu.store(cpu, Relaxed);
                self.kernel.current[cpu].set(next);
            }
        }
        Machine::with(|machine| machine.switch_to(machine.task(next)));
        self.finish_switch();
    }

    /// The first thing on a new stack. Interrupts are still off: the flag belongs to the CPU.
    pub(crate) fn finish_switch(&self) {
        // The run queue is looked up again: the task may have come from another CPU.
        let rq = &self.rqs[Machine::with(Machine::this_cpu)];
        // SAFETY: `schedule` runs with interrupts off.
        let prev = self.switcher.finish_task_switch(&unsafe { IrqsOff::assume(Lab::NEW) });
        let prev_task = rq.prev.get();
        let prev_task = self.scheduled.iter().position(|task| core::ptr::eq(task, prev_task)).expect("a task was left");
        match self.queue {
            Some(queue) => {
                // What nobody reads again tells states apart that are the same.
                rq.prev.poke(core::ptr::null_mut());
                self.put_back(queue, prev_task);
            }
            None => self.scheduled[prev_task].on_cpu.store(0, Release),
        }
        rq.unlock();
        Machine::with(|machine| {
            machine.preempt_disable();
            machine.irq_restore(true);
        });
        if self.queue.is_some() {
            // All that it knows now is what is left to drop.
            let [borrow, reference] = prev.mms().map(address);
            Machine::with(|machine| machine.checkpoint_of(knows::WHAT_TO_DROP, &[borrow, reference]));
        }
        prev.mmdrop_lazy_tlb_sched();
        Machine::with(Machine::preempt_enable);
    }

    /// Takes a task over from the CPU that ran it last, and switches to it.
    pub(crate) fn migrate(&self, task: usize, next: usize) {
        let were_on = Machine::with(|machine| machine.irq_save(Label::NONE));
        let source = &self.rqs[self.scheduled[next].cpu.load(Relaxed)];
        source.lock();
        source.unlock();
        Machine::with(|machine| machine.irq_restore(were_on));
        loop {
            Sim.spin_until(|| (self.scheduled[next].on_cpu.load(Acquire) == 0).then_some(()));
            if self.switch(task, next) {
                return;
            }
        }
    }

    /// The script is over: a task that was preempted here and that nobody has taken over goes on, and who is waited for
    /// by another CPU makes way.
    pub(crate) fn script_is_over(&self, task: usize) {
        let cpu = Machine::with(Machine::this_cpu);
        let rq = &self.rqs[cpu];
        while rq.preempted.peek() != 0 {
            self.switch(task, rq.preempted.peek().trailing_zeros() as usize);
        }
        if self.program.scripts.iter().flatten().any(|&statement| statement == Statement::Migrate(task)) {
            self.switch(task, self.program.idle(cpu));
        }
    }

    /// The vector that a statement of a CPU arrives by.
    pub(crate) fn vector(&self, cpu: usize, statement: Statement) -> u8 {
        let index = self.arriving[cpu].iter().position(|&other| other == statement);
        1 + index.expect("a statement of this CPU's script") as u8
    }

    /// An interrupt has come.
    pub(crate) fn interrupt(&self, vector: u8) {
        let cpu = Machine::with(Machine::this_cpu);
        if vector == Machine::TICK {
            // What it asks for is done on the way out.
            return;
        }
        if vector == CALL_VECTOR {
            // SAFETY: the machine runs handlers with interrupts off.
            self.switcher.on_ipi(&unsafe { IrqsOff::assume(Lab::NEW) });
            return;
        }
        if let Some(worker) = self.worker.filter(|worker| worker.is_for_it(cpu, vector)) {
            worker.interrupt(vector);
            return;
        }
        let rq = &self.rqs[cpu];
        match self.arriving[cpu][usize::from(vector) - 1] {
            Statement::Interrupt(Source::Irq, what) | Statement::Interrupt(Source::Nmi, what) => {
                self.in_interrupt(what)
            }
            Statement::Interrupt(Source::Softirq, _) => rq.softirqs.poke(rq.softirqs.peek() | 1 << vector),
            Statement::Preempt(task) => rq.need_resched.poke(task + 1),
            _ => unreachable!("only these arrive"),
        }
    }

    /// The end of an interrupt: softirqs, then preemption. Context: interrupts off.
    pub(crate) fn irq_exit(&self, vector: u8) {
        if vector == Machine::TICK {
            return self.preempted_by_tick();
        }
        if Machine::with(Machine::context).in_softirq {
            return;
        }
        let rq = &self.rqs[Machine::with(Machine::this_cpu)];
        while rq.softirqs.peek() != 0 {
            let vector = rq.softirqs.peek().trailing_zeros();
            rq.softirqs.poke(rq.softirqs.peek() & !(1 << vector));
            let cpu = Machine::with(Machine::this_cpu);
            if let Statement::Interrupt(_, what) = self.arriving[cpu][vector as usize - 1] {
                Machine::with(|machine| machine.softirq(|| self.in_interrupt(what)));
            }
        }
        self.preempt_schedule_irq();
    }

    /// Preemption was enabled again, with interrupts on.
    pub(crate) fn preempt_schedule(&self) {
        if self.rqs[Machine::with(Machine::this_cpu)].need_resched.peek() != 0 {
            Machine::with(|machine| machine.irq_save(Label::NONE));
            self.preempt_schedule_irq();
            Machine::with(|machine| machine.irq_restore(true));
        }
    }

    /// Gives the CPU to the task that shall preempt the running one, if it may. Context: interrupts off, before and
    /// after, on whatever CPU.
    fn preempt_schedule_irq(&self) {
        Machine::with(|machine| {
            let need_resched = &self.rqs[machine.this_cpu()].need_resched;
            let wanted = need_resched.peek();
            if wanted == 0 || machine.context().preempt_disabled {
                return;
            }
            need_resched.poke(0);
            let (current, next) = (machine.current_task().index(), wanted - 1);
            if next == current {
                return;
            }
            if !self.program.is_idle(current) {
                let preempted = &self.rqs[machine.this_cpu()].preempted;
                preempted.poke(preempted.peek() | 1 << current);
            }
            machine.preempted(|| {
                self.schedule(current, next);
                machine.irq_save(Label::NONE);
            });
        });
    }
}
