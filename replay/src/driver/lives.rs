//! The tasks and address spaces of a trace: how they begin, who shares which, and how they end.

use super::{MmId, Replayer, Traced, TracedMm};
use crate::engine::{Action, NewMm, Slot};
use crate::event::{Comm, Event};
use crate::tasks::has_kthread_name;

impl Replayer {
    pub(super) fn new_slot(&mut self) -> Slot {
        self.free_slots.pop().unwrap_or_else(|| {
            self.next_slot += 1;
            self.next_slot - 1
        })
    }

    pub(super) fn new_mm(&mut self, certain: bool, old: bool) -> MmId {
        let mm = TracedMm { users: 1, certain, old };
        match self.free_mms.pop() {
            Some(id) => {
                self.mms[id as usize] = mm;
                id
            }
            None => {
                self.mms.push(mm);
                (self.mms.len() - 1) as MmId
            }
        }
    }

    /// Whether two address spaces are known to be one or two. Those that the trace saw made are known; of those that were
    /// there before, a guess may be wrong.
    pub(super) fn can_tell(&self, one: MmId, other: MmId) -> bool {
        let (first, second) = (self.mms[one as usize], self.mms[other as usize]);
        one == other
            || (first.certain && second.certain)
            || !first.old
            || !second.old
            || self.apart.contains(&(one.min(other), one.max(other)))
    }

    pub(super) fn put_mm(&mut self, id: MmId) {
        let mm = &mut self.mms[id as usize];
        mm.users -= 1;
        if mm.users == 0 {
            self.free_mms.push(id);
            if mm.old {
                self.groups.retain(|_, group| *group != id);
                self.apart.retain(|&(one, other)| one != id && other != id);
            }
        }
    }

    /// A task that the trace names: known, or there from the start.
    pub(super) fn task(&mut self, event: &Event, pid: u32, comm: Comm) -> Traced {
        let comm = if event.pid == pid { event.comm } else { comm };
        if pid == 0 {
            let slot = self.cpus[event.cpu as usize].idle;
            return Traced { slot, mm: None, cpu: None, dying: None, exec_at: None, helper: false };
        }
        if let Some(task) = self.tasks.get(&pid) {
            return *task;
        }
        let told = self.tasks_file.as_ref().and_then(|file| file.get(pid));
        let in_column = event.tgid.filter(|_| event.pid == pid);
        if told.is_none() && in_column.is_none() {
            self.report.inferred_tasks += 1;
        }
        let kthread = told.map_or_else(|| has_kthread_name(comm), |told| told.kthread);
        let group = told.map(|told| told.tgid).or(in_column);
        let mm = if kthread { None } else { group.and_then(|group| self.groups.get(&group).copied()) };
        match (kthread, mm) {
            (true, _) => self.add_task(event, pid, NewMm::None, None),
            (false, Some(mm)) => {
                let other = self.tasks.values().find(|task| task.mm == Some(mm)).map(|task| task.slot);
                self.mms[mm as usize].users += 1;
                self.add_task(event, pid, other.map_or(NewMm::Own, NewMm::Of), Some(mm))
            }
            (false, None) => {
                let mm = self.new_mm(group.is_some(), true);
                if let Some(group) = group {
                    self.groups.insert(group, mm);
                }
                self.add_task(event, pid, NewMm::Own, Some(mm))
            }
        }
    }

    pub(super) fn add_task(&mut self, event: &Event, pid: u32, new: NewMm, mm: Option<MmId>) -> Traced {
        let helper = new == NewMm::None && pid != event.pid;
        let task = Traced { slot: self.new_slot(), mm, cpu: None, dying: None, exec_at: None, helper };
        self.act(event.time, event.cpu, Action::New(task.slot, new));
        self.tasks.insert(pid, task);
        task
    }

    pub(super) fn new_task(&mut self, event: &Event, parent: u32, child: u32, shares_mm: Option<bool>) {
        if self.tasks.get(&child).is_some_and(|task| shares_mm.is_none() || task.cpu.is_some()) {
            return;
        }
        if self.tasks.contains_key(&child) {
            self.gone(event, child);
        }
        let parent = self.task(event, parent, Comm::default());
        match (parent.mm, shares_mm) {
            (None, _) => self.add_task(event, child, NewMm::None, None),
            (Some(mm), Some(true)) => {
                self.mms[mm as usize].users += 1;
                self.add_task(event, child, NewMm::Of(parent.slot), Some(mm))
            }
            (Some(_), certain) => {
                self.report.inferred_tasks += u64::from(certain.is_none());
                let mm = self.new_mm(certain.is_some(), false);
                self.add_task(event, child, NewMm::Own, Some(mm))
            }
        };
    }

    /// The running task has a new address space. Says whether that loads a root.
    pub(super) fn change_mm(&mut self, event: &Event, pid: u32) -> bool {
        let task = self.task(event, pid, Comm::default());
        if let Some(old) = task.mm {
            self.put_mm(old);
        }
        let mm = self.new_mm(true, false);
        if let Some(task) = self.tasks.get_mut(&pid) {
            task.mm = Some(mm);
        }
        let cpu = &mut self.cpus[event.cpu as usize];
        (cpu.sure, cpu.on) = (true, Some(mm));
        self.act_and_see(event, Action::Exec(task.slot))
    }

    pub(super) fn exec(&mut self, event: &Event, pid: u32, old_pid: u32) {
        // A thread that execs takes over the number of its group's leader, which has exited.
        if pid != old_pid {
            match self.tasks.get(&pid) {
                Some(leader) if leader.cpu.is_some() => return,
                Some(_) => self.gone(event, pid),
                None => {}
            }
            if let Some(task) = self.tasks.remove(&old_pid) {
                self.tasks.insert(pid, task);
            }
            self.cpus[event.cpu as usize].curr = pid;
        }
        match self.tasks.get_mut(&pid) {
            Some(task) if task.exec_at.is_some() => task.exec_at = None,
            _ => {
                let was_sure = self.cpus[event.cpu as usize].sure;
                let predicted = self.change_mm(event, pid);
                if was_sure {
                    self.truth.compare(event.line, event.cpu, "exec", predicted, false);
                } else {
                    self.truth.unknown += 1;
                }
            }
        }
    }

    pub(super) fn exit(&mut self, event: &Event, pid: u32) {
        let task = self.task(event, pid, Comm::default());
        let Some(mm) = task.mm else { return };
        let last = self.mms[mm as usize].users == 1;
        // Without the kernel's word there is nothing to wait for.
        let holds = last && self.has_truth;
        self.act(event.time, event.cpu, Action::Exit(task.slot, holds));
        if let Some(task) = self.tasks.get_mut(&pid) {
            task.mm = None;
            task.dying = holds.then_some(mm);
        }
        if !holds {
            self.put_mm(mm);
        }
    }

    /// The exiting task puts the last user of its address space, and flushes. `real` says whether that loaded a root.
    pub(super) fn last_put(&mut self, event: &Event, pid: u32, real: Option<bool>) {
        let Some(task) = self.tasks.get_mut(&pid) else { return };
        let slot = task.slot;
        let Some(mm) = task.dying.take() else { return };
        self.put_mm(mm);
        let predicted = self.act_and_see(event, Action::LastPut(slot));
        match real {
            Some(real) if self.cpus[event.cpu as usize].sure => {
                self.truth.compare(event.line, event.cpu, "exit", predicted, real);
            }
            Some(_) => self.truth.unknown += 1,
            None => {}
        }
    }

    /// A task is dead and has been switched away from.
    pub(super) fn gone(&mut self, event: &Event, pid: u32) {
        let Some(task) = self.tasks.remove(&pid) else { return };
        if let Some(mm) = task.mm.or(task.dying) {
            self.put_mm(mm);
        }
        self.act(event.time, event.cpu, Action::Gone(task.slot));
        self.free_slots.push(task.slot);
    }
}
