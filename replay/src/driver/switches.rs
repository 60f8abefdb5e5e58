//! Switches, and the loads of roots that show whether the replay has foretold them.

use super::{Expected, FLUSH_NS, IN_SWITCH, MmId, Replayer, SWITCH_NS, Traced};
use crate::engine::{Action, Slot};
use crate::event::{Comm, Event, Kind};
use crate::platform::{forget_loads, has_loaded};

impl Replayer {
    /// Whether this is the load that a switch makes: it comes while the task that is left is still named as running.
    pub(super) fn is_load_of_switch(&mut self, event: &Event) -> bool {
        let cpu = &mut self.cpus[event.cpu as usize];
        match (&mut cpu.expected, event.kind) {
            (Some(expected), Kind::RootLoad)
                if expected.prev == event.pid
                    && !event.hardirq
                    && event.time <= expected.time + SWITCH_NS
                    && event.preempt_count.is_none_or(|count| count >= IN_SWITCH) =>
            {
                self.has_truth = true;
                expected.seen = true;
                true
            }
            _ => false,
        }
    }

    /// Whatever comes after a switch shows whether it has loaded a root.
    pub(super) fn settle(&mut self, event: &Event) {
        let Some(expected) = self.cpus[event.cpu as usize].expected.take() else { return };
        if expected.known {
            self.truth.compare(expected.line, event.cpu, "switch", expected.predicted, expected.seen);
            return;
        }
        self.truth.unknown += 1;
        // What was guessed is known from now on, if the trace tells at all.
        if let Some((before, after)) = expected.guess.filter(|_| self.has_truth) {
            if expected.seen {
                self.apart.insert((before.min(after), before.max(after)));
            } else {
                self.share(event, before, after);
            }
        }
    }

    /// Two address spaces turn out to be one.
    pub(super) fn share(&mut self, event: &Event, before: MmId, after: MmId) {
        let (kept, guessed) = if self.mms[after as usize].certain { (after, before) } else { (before, after) };
        let of = |mm| move |task: &&Traced| task.mm == Some(mm);
        let Some(other) = self.tasks.values().find(of(kept)).map(|task| task.slot) else { return };
        let same: Vec<Traced> = self.tasks.values().filter(of(guessed)).copied().collect();
        for task in same {
            let cpu = task.cpu.unwrap_or(event.cpu);
            self.act(event.time, cpu, Action::Share(task.slot, other, task.cpu.is_some()));
            self.mms[kept as usize].users += 1;
            self.put_mm(guessed);
        }
        for task in self.tasks.values_mut().filter(|task| task.mm == Some(guessed)) {
            task.mm = Some(kept);
        }
        for cpu in self.cpus.iter_mut().filter(|cpu| cpu.on == Some(guessed)) {
            cpu.on = Some(kept);
        }
    }

    /// A flush of another CPU should have come by now.
    pub(super) fn overdue(&mut self, event: &Event) {
        let cpu = &mut self.cpus[event.cpu as usize];
        if let Some((sent, line)) = cpu.interrupted_at
            && event.time > sent + FLUSH_NS
        {
            cpu.interrupted_at = None;
            self.truth.compare(line, event.cpu, "flush", true, false);
        }
    }

    pub(super) fn traced_switch(&mut self, event: &Event, prev: u32, prev_dead: bool, next: u32, next_comm: Comm) {
        if prev_dead {
            // In case its exit was lost.
            self.exit(event, prev);
            self.last_put(event, prev, Some(false));
        }
        let before = self.cpus[event.cpu as usize].on.filter(|_| self.cpus[event.cpu as usize].sure);
        let known = self.switch(event, prev, next, next_comm);
        let predicted = has_loaded(event.cpu);
        let guess = before.zip(self.cpus[event.cpu as usize].on).filter(|_| !known);
        self.cpus[event.cpu as usize].expected =
            Some(Expected { line: event.line, time: event.time, prev, predicted, known, seen: false, guess });
        if prev_dead {
            self.gone(event, prev);
        }
    }

    /// A switch, traced or made up. Says whether it is known what the MMU is on, before and after.
    pub(super) fn switch(&mut self, event: &Event, prev: u32, next: u32, next_comm: Comm) -> bool {
        if prev == next {
            return true;
        }
        let index = event.cpu as usize;
        let next_task = self.task(event, next, next_comm);
        // A task that runs elsewhere has left there, and that was lost.
        if let Some(other) = next_task.cpu
            && next != 0
            && other != event.cpu
        {
            self.report.inferred_switches += 1;
            let idle = self.cpus[other as usize].idle;
            self.act(event.time, other, Action::Switch(next_task.slot, idle));
            self.cpus[other as usize].curr = 0;
            self.cpus[other as usize].expected = None;
        }
        let prev_slot = self.slot_of(event.cpu, prev);
        if let Some(task) = self.tasks.get_mut(&prev) {
            task.cpu = None;
        }
        if let Some(task) = self.tasks.get_mut(&next) {
            task.cpu = Some(event.cpu);
        }
        let next_slot = self.slot_of(event.cpu, next);
        forget_loads();
        self.act(event.time, event.cpu, Action::Switch(prev_slot, next_slot));
        self.cpus[index].curr = next;
        let Some(mm) = next_task.mm else { return true };
        let cpu = &mut self.cpus[index];
        let (was_sure, was_on) = (core::mem::replace(&mut cpu.sure, true), cpu.on.replace(mm));
        was_sure && was_on.is_none_or(|was_on| self.can_tell(was_on, mm))
    }

    pub(super) fn slot_of(&self, cpu: u32, pid: u32) -> Slot {
        match self.tasks.get(&pid) {
            Some(task) if pid != 0 => task.slot,
            _ => self.cpus[cpu as usize].idle,
        }
    }

    // Loads that no switch explains.

    pub(super) fn load(&mut self, event: &Event) {
        self.has_truth = true;
        let index = event.cpu as usize;
        if event.hardirq {
            match self.cpus[index].interrupted_at.take() {
                Some((_, line)) => self.truth.compare(line, event.cpu, "flush", true, true),
                None => {
                    self.truth.observed += 1;
                    self.act(event.time, event.cpu, Action::Flush);
                    self.cpus[index].sure = true;
                }
            }
            return;
        }
        let Some(task) = self.tasks.get(&event.pid).copied().filter(|_| event.pid != 0) else {
            // The idle task leaves what it held.
            self.truth.observed += 1;
            self.act(event.time, event.cpu, Action::Flush);
            return;
        };
        if task.dying.is_some() {
            self.last_put(event, event.pid, Some(true));
        } else if task.mm.is_some() || task.helper {
            let predicted = self.change_mm(event, event.pid);
            self.truth.compare(event.line, event.cpu, "exec", predicted, true);
            if let Some(task) = self.tasks.get_mut(&event.pid) {
                task.exec_at = Some(event.line);
                task.helper = false;
            }
        } else {
            // A kernel thread: it adopts an address space that the trace does not name, or execs, or leaves one.
            self.truth.observed += 1;
            self.act(event.time, event.cpu, Action::Flush);
        }
    }
}
