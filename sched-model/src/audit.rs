//! What the books say at the end of an execution, and what the facts are at any moment.

use lazytlb_core::CpuId;
use lazytlb_core::mm::{Mm, MmPtr};
use lazytlb_core::platform::Platform;
use lazytlb_machine::{Kind, Machine};

use crate::accounted::Accounted;
use crate::platform::{Lab, MmData, address, peek};
use crate::world::World;

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// The name that the mm at an address has in the program.
    pub(crate) fn name_of(&self, address: usize) -> String {
        let index = self.named.iter().position(|named| named.peek().addr() == address);
        let is_init = core::ptr::from_ref(self.switcher.init_mm()).addr() == address;
        let other = if is_init { "init_mm" } else { "an mm" };
        index.map_or_else(|| other.into(), |index| format!("mm {}", self.program.mms[index]))
    }

    /// At rest every mm must be accounted for: `count` is one for the users, and one for each reference that somebody
    /// can name. What nobody can name has leaked.
    pub(crate) fn audit(&self, machine: &Machine) {
        self.check_forbidden(machine);
        let mut waiting = 0;
        for slot in 0..self.slots {
            let object = machine.slot(self.mms, slot);
            if !machine.is_live(object.as_ptr()) {
                continue;
            }
            // SAFETY: in the arena, and allocated.
            let mm: &Mm<Lab<R>, S> = unsafe { object.as_ref() };
            let (count, expected) =
                (mm.core().count(), self.expected_count(machine, mm, object.as_ptr().addr(), |_| true));
            let name = self.name_of(object.as_ptr().addr());
            self.check_contents(machine, mm, &name);
            if expected == 0 && count == 0 && self.may_wait(object.as_ptr().addr()) {
                waiting += 1;
            } else if expected == 0 {
                machine
                    .fail(Kind::Leak, format!("I5: {name} is alive with a count of {count}, and nobody can free it"));
            } else if count != expected {
                machine.fail(
                    Kind::Assertion,
                    format!("I5: {name} has a count of {count}; {expected} can be accounted for"),
                );
            }
        }
        let counted = peek(|| {
            // SAFETY: it is only read.
            let shared = unsafe { self.switcher.shared() };
            self.switcher.strategy().waiting(shared)
        });
        if counted != waiting {
            let message = format!("{counted} mms are counted as waiting to be freed, and {waiting} may be");
            machine.fail(Kind::Assertion, message);
        }
        if self.switcher.strategy().waits_for_slots() && waiting > self.most_waiting() {
            let message = format!("{waiting} mms wait to be freed, and no more than {} may", self.most_waiting());
            machine.fail(Kind::Assertion, message);
        }
    }

    /// How many mms may wait at rest under a strategy that waits for slots: one for each CPU whose slot is not empty, and one
    /// for each whose borrow was ended by an interrupt, until its next tail.
    fn most_waiting(&self) -> usize {
        let is_waited_for = |cpu: &usize| {
            let state = self.switcher.cpu(CpuId::new(*cpu));
            // SAFETY: it is only read.
            let of_strategy = unsafe { state.strategy() };
            peek(|| state.prev_mm().is_some() || self.switcher.strategy().publishes(of_strategy).is_something())
        };
        (0..self.program.cpus()).filter(is_waited_for).count()
    }

    /// Whether an mm that nobody references may still wait for a CPU.
    fn may_wait(&self, at: usize) -> bool {
        (0..self.program.cpus()).map(CpuId::new).any(|cpu| {
            let state = self.switcher.cpu(cpu);
            let borrows = address(peek(|| state.active_mm())) == at;
            let isolated = self.program.isolated.contains(&cpu.get());
            // A borrow that is over waits for this CPU's next tail, which looks at what waits.
            let tail_looks = peek(|| state.prev_mm()).is_some();
            // SAFETY: it is only read.
            let of_strategy = unsafe { state.strategy() };
            tail_looks || peek(|| self.switcher.strategy().waits_for(of_strategy, borrows, isolated))
        })
    }

    /// The references to an mm that can be accounted for, borrows only of those CPUs that are not in the middle of a switch.
    pub(crate) fn expected_count(
        &self,
        machine: &Machine,
        mm: &Mm<Lab<R>, S>,
        at: usize,
        is_settled: impl Fn(usize) -> bool,
    ) -> usize {
        let pointer = MmPtr::from(mm.core());
        let of_cpu = |cpu| {
            if !machine.is_online(cpu) {
                // What it holds it holds until somebody brings it back: it must hold nothing.
                return 0;
            }
            let state = self.switcher.cpu(CpuId::new(cpu));
            let runs_user = self.current_mm(cpu) == Some(pointer);
            let borrows = peek(|| state.active_mm()) == Some(pointer) && !runs_user && is_settled(cpu);
            let parked = peek(|| state.prev_mm()) == Some(pointer);
            // SAFETY: it is only read.
            let of_strategy = unsafe { state.strategy() };
            self.switcher.strategy().references(of_strategy, pointer, borrows || parked)
        };
        let held: usize = (0..self.named.len())
            .filter(|&name| self.named[name].peek().addr() == at)
            .map(|name| self.held[name].peek())
            .sum();
        usize::from(mm.core().users() > 0) + (0..self.program.cpus()).map(of_cpu).sum::<usize>() + held
    }

    pub(crate) fn current_mm(&self, cpu: usize) -> Option<MmPtr<Lab<R>>> {
        let curr = peek(|| self.switcher.cpu(CpuId::new(cpu)).curr());
        let task = self.tasks.iter().find(|&task| core::ptr::eq(task, curr))?;
        peek(|| task.mm())
    }

    /// What each CPU is on, and what each mm's counts are.
    pub(crate) fn facts(&self, machine: &Machine) -> Vec<String> {
        let state_of = |address: usize| match machine.is_live(core::ptr::without_provenance::<u8>(address)) {
            true => "",
            false => " (freed)",
        };
        let cpus = (0..self.program.cpus()).map(|cpu| {
            let active = address(peek(|| self.switcher.cpu(CpuId::new(cpu)).active_mm()));
            let runs = self.current_mm(cpu).map_or("a kernel thread", |_| "a user task");
            let root = self.mmus.root(cpu);
            let root_name = machine.name_of_ptr(core::ptr::without_provenance::<u8>(root));
            format!(
                "cpu{cpu} runs {runs}; active_mm = {}{}, its MMU is on {root_name}{}{}",
                self.name_of(active),
                state_of(active),
                state_of(root),
                self.mmus.describe(machine, cpu),
            )
        });
        let mms = self.named.iter().zip(&self.program.mms).filter(|(named, _)| !named.peek().is_null());
        let mms = mms.map(|(named, name)| {
            // SAFETY: in the arena; its words are looked at from outside.
            let mm = unsafe { &*named.peek() };
            let (users, count) = (mm.core().users(), mm.core().count());
            format!("mm {name}{}: mm_users {users}, mm_count {count}", state_of(named.peek().addr()))
        });
        cpus.chain(mms).collect()
    }

    /// What is left at the end: which mms are alive, and what each CPU is on.
    pub(crate) fn outcome(&self, machine: &Machine, values: &mut Vec<u64>) {
        let live = self.named.iter().map(|named| u64::from(!named.peek().is_null() && machine.is_live(named.peek())));
        let active = (0..self.program.cpus()).map(|cpu| {
            let active = address(peek(|| self.switcher.cpu(CpuId::new(cpu)).active_mm()));
            let named = self.named.iter().position(|named| named.peek().addr() == active);
            named.map_or(self.named.len() as u64, |index| index as u64)
        });
        values.extend(live.chain(active));
    }
}
