//! Contexts: what keeps others off a CPU, what comes in between all the same, and who has the CPU.

use core::panic::Location;

use lazytlb_core::memory::Label;
use lazytlb_core::platform::Context;

use crate::history::History;
use crate::machine::{Machine, TaskId};
use crate::mix::fold;
use crate::schedule::Event;
use crate::state::{Action, Next};
use crate::step::sort;
use crate::verdict::Kind;
use crate::watchpoint::Seen;

impl Machine {
    /// Disables preemption; nests. A step only where tasks can be preempted.
    pub fn preempt_disable(&self) {
        let can_be_preempted = self.config.ticks || self.preemption.get().is_some();
        if can_be_preempted && self.state.borrow_mut().me().preempt_count == 0 {
            self.point(Next::PreemptOff);
            // Every step changes the key, also where preemption is enabled again before another.
            self.state.borrow_mut().observe(sort::PREEMPT_OFF, 0);
        }
        self.state.borrow_mut().add_preempt_count(1);
    }

    /// Enables preemption again. Not a step.
    pub fn preempt_enable(&self) {
        let (unbalanced, preemptible) = {
            let mut state = self.state.borrow_mut();
            let unbalanced = state.me().preempt_count == 0;
            state.add_preempt_count(if unbalanced { 0 } else { -1 });
            let place = state.me();
            (unbalanced, place.preempt_count == 0 && place.irqs_on && !place.in_handler() && place.in_softirq == 0)
        };
        if unbalanced {
            self.fail(Kind::WrongContext, "preempt_enable without preempt_disable");
        }
        if preemptible && let Some(resched) = self.preemption.get() {
            resched();
        }
    }

    /// From now on, or from now on no more, a timer may interrupt the running CPU before any step at which its task can be
    /// preempted: interrupt [`TICK`](Self::TICK). Not a step. Only on a machine with [`Config::ticks`](crate::Config::ticks), and
    /// turned off only with interrupts off: what is disabled behind no step cannot come before it.
    pub fn tick(&self, on: bool) {
        let mut state = self.state.borrow_mut();
        let me = state.running;
        state.summary.kick(me);
        state.tick(on);
    }

    /// Where the running code is.
    pub fn context(&self) -> Context {
        let mut state = self.state.borrow_mut();
        let place = state.me();
        Context {
            in_nmi: place.in_nmi,
            in_hardirq: place.in_irq > 0,
            in_softirq: place.in_softirq > 0,
            preempt_disabled: place.preempt_count > 0,
            irqs_disabled: !place.irqs_on,
        }
    }

    /// Whether interrupts are on, on any CPU.
    pub fn irqs_are_on(&self, cpu: usize) -> bool {
        self.state.borrow().places[cpu].irqs_on
    }

    /// Whether a CPU is in a hardware interrupt.
    pub fn is_in_irq(&self, cpu: usize) -> bool {
        self.state.borrow().places[cpu].in_irq > 0
    }

    /// Says that the caller may sleep: a verdict if it must not here.
    pub fn might_sleep(&self) {
        self.might_sleep_by("");
    }

    /// As [`might_sleep`](Self::might_sleep); the verdict begins with the name of a rule.
    pub fn might_sleep_by(&self, rule: &str) {
        let Context { in_nmi, in_hardirq, in_softirq, preempt_disabled, irqs_disabled } = self.context();
        if in_nmi || in_hardirq || in_softirq || preempt_disabled || irqs_disabled {
            let function = self.function();
            self.fail(Kind::SleepingWhileAtomic, format!("{rule}{function} may sleep, and must not here"));
        }
    }

    /// Whether interrupts are on; turns them off.
    pub fn irq_save(&self, label: Label) -> bool {
        if self.is_dropped(label) {
            return false;
        }
        self.point(Next::IrqOff);
        let mut state = self.state.borrow_mut();
        let was_on = state.set_irqs(false);
        state.observe(sort::IRQ_OFF, u64::from(was_on));
        was_on
    }

    /// Turns interrupts on again if they were on.
    pub fn irq_restore(&self, were_on: bool) {
        if !were_on {
            return;
        }
        self.point(Next::IrqOn);
        {
            let mut state = self.state.borrow_mut();
            state.set_irqs(true);
            state.observe(sort::IRQ_ON, 0);
        }
        self.tell(Seen::InterruptsOn);
    }

    /// Sends vector `vector` to the places of `mask`, the sender included if it is in. An offline CPU loses it.
    ///
    /// Ordered after all earlier stores of the sender.
    pub fn send_ipi(&self, mask: u64, vector: u8) {
        self.send_ipi_to(|_| mask, vector);
    }

    /// As [`send_ipi`](Self::send_ipi); what `whom` does, and says of the CPUs it goes to, is part of the step.
    pub fn send_ipi_to(&self, whom: impl FnOnce(&Machine) -> u64, vector: u8) {
        self.point(Next::Ipi);
        let mask = whom(self);
        let mut state = self.state.borrow_mut();
        for place in 0..state.places.len() {
            if mask & 1 << place == 0 {
                continue;
            }
            state.summary.kick(place);
            if state.places[place].online {
                if self.is_weak() {
                    self.weak.borrow_mut().send(state.running, place, vector.into());
                }
                state.post(place, vector);
            } else {
                state.lost_ipis += 1;
            }
        }
        state.observe(sort::IPI, mask);
        drop(state);
        self.note(|| format!("interrupt {vector} to mask {mask:#x}"));
    }

    /// Runs `f` as one step, at a moment when every other CPU could be stopped: none has preemption or interrupts off, or
    /// is in an interrupt (Linux `stop_machine`).
    pub fn stop_machine(&self, f: impl FnOnce(&Machine)) {
        self.point(Next::Stop);
        self.state.borrow_mut().observe(sort::STOP, 0);
        if self.is_weak() {
            self.weak.borrow_mut().stop();
        }
        f(self);
    }

    /// The running CPU takes an interrupt: its handler runs on the interrupted task's stack.
    #[cold]
    pub(crate) fn interrupt(&self, action: Action) {
        let (vector, nmi) = match action {
            Action::Irq(_, vector) => (vector, false),
            Action::Nmi(_, vector) => (vector, true),
            _ => return,
        };
        let were_on = {
            let mut state = self.state.borrow_mut();
            self.record.borrow_mut().push(Event::Did(action));
            let were_on = state.set_irqs(false);
            if nmi {
                state.enter_nmi(vector);
            } else {
                state.take(vector);
                state.me().in_irq += 1;
                state.me().after_mover = vector == Self::TICK;
            }
            if self.is_weak() && vector != Self::TICK {
                let (me, task) = (state.running, state.places[state.running].task);
                self.weak.borrow_mut().deliver(me, u32::from(vector) | u32::from(nmi) << 8, task);
            }
            let task = state.current();
            task.interrupted.push((task.history, task.statement));
            task.history = History::new(fold(sort::HANDLER, u64::from(vector) | u64::from(nmi) << 8));
            task.statement = task.history;
            // What comes in between may wait, too.
            let wait = core::mem::take(&mut task.wait);
            task.interrupted_waits.push(wait);
            were_on
        };
        self.note(|| format!("{} {vector}", if nmi { "NMI" } else { "interrupt" }));
        let handler = if nmi { &self.nmi_handler } else { &self.handler };
        if let Some(handler) = handler.get() {
            self.enter_call(if nmi { "(NMI)" } else { "(interrupt)" }, Location::caller(), true);
            handler(vector);
            self.leave_call();
        }
        self.drain_all();
        if nmi {
            self.state.borrow_mut().leave_nmi();
        } else {
            self.state.borrow_mut().me().in_irq -= 1;
            // Softirqs, and the switch to another task if this one is preempted. It may come back on another CPU.
            if let Some(exit) = self.irq_exit.get() {
                exit(vector);
                // If it has turned them on, what comes in between comes after the return as well.
                self.state.borrow_mut().set_irqs(false);
                self.drain_all();
            }
        }
        let mut state = self.state.borrow_mut();
        state.set_irqs(were_on);
        let task = state.current();
        (task.history, task.statement) = task.interrupted.pop().expect("pushed above");
        task.wait = task.interrupted_waits.pop().expect("pushed above");
        drop(state);
        if were_on {
            self.tell(Seen::InterruptsOn);
        }
    }

    /// Returning from an interrupt is a barrier.
    fn drain_all(&self) {
        let empty = self.state.borrow_mut().me().buffer.is_empty();
        if !empty {
            self.point(Next::Fence);
        }
    }

    /// Runs `f` as a softirq, on the way out of an interrupt: with interrupts on.
    pub fn softirq(&self, f: impl FnOnce()) {
        self.state.borrow_mut().me().in_softirq += 1;
        self.irq_restore(true);
        f();
        self.irq_save(Label::NONE);
        self.state.borrow_mut().me().in_softirq -= 1;
    }

    /// Runs `f`, which gives the CPU to another task although the running one had not asked for it, and returns when the
    /// running one is switched to again, on whatever CPU. Interrupts are off.
    pub fn preempted(&self, f: impl FnOnce()) {
        let here = {
            let mut state = self.state.borrow_mut();
            state.me().preempted += 1;
            state.running
        };
        f();
        self.state.borrow_mut().places[here].preempted -= 1;
    }

    /// A device raises an interrupt of a CPU, or a non-maskable one. A step of whoever says so, but no barrier.
    pub fn raise(&self, cpu: usize, vector: u8, nmi: bool) {
        self.point(Next::Yield);
        let mut state = self.state.borrow_mut();
        if nmi {
            state.summary.kick_by_nmi(cpu);
            state.post_nmi(cpu, vector);
        } else {
            state.summary.kick(cpu);
            state.post(cpu, vector);
        }
        state.observe(sort::IPI, (cpu as u64) << 16 | u64::from(vector) << 8 | u64::from(nmi) | 1 << 32);
        drop(state);
        self.note(|| format!("a device raises {} {vector} of cpu{cpu}", if nmi { "NMI" } else { "interrupt" }));
    }

    /// Waits for an interrupt and returns when one was handled.
    pub fn idle(&self) {
        self.granted.set(false);
        {
            let mut state = self.state.borrow_mut();
            let me = state.running;
            state.announce(Next::Idle);
            state.points += 1;
            match self.pick(&mut state) {
                None => {
                    drop(state);
                    self.suspend_for_ever()
                }
                Some(action) => {
                    state.action = action;
                    let mine = matches!(action, Action::Irq(..) | Action::Nmi(..)) && action.place() == me;
                    drop(state);
                    if !mine {
                        self.suspend();
                    }
                }
            }
        }
        let action = self.state.borrow().action;
        self.interrupt(action);
    }

    /// The running task's body has returned: its CPU takes interrupts for ever.
    pub(crate) fn body_is_over(&self) -> ! {
        {
            let mut state = self.state.borrow_mut();
            let task = state.current();
            task.history = History::new(sort::DONE);
        }
        loop {
            self.idle();
        }
    }

    /// Gives the running CPU to another task: its stack is run from where it stopped, or from its beginning. Returns
    /// when some CPU, this or another, switches back.
    pub fn switch_to(&self, task: TaskId) {
        let mut state = self.state.borrow_mut();
        let me = state.running;
        let old = state.places[me].task;
        if old == task.0 {
            return;
        }
        if let Some(elsewhere) = state.tasks[task.0].place {
            drop(state);
            self.fail(Kind::WrongContext, format!("{} runs on cpu{elsewhere} already", self.task_name(task)));
            return;
        }
        // Whom it switches to is a function of what it has seen, or forgotten with that.
        state.observe(sort::SWITCH, 0);
        state.tasks[old].place = None;
        state.tasks[task.0].place = Some(me);
        state.places[me].task = task.0;
        self.switching.set(true);
        drop(state);
        self.note(|| format!("switch to {}", self.task_name(task)));
        self.suspend();
    }
}
