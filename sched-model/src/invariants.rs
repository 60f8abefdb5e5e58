//! The invariants of a lazily held address space, I1 to I12, and where each is checked.
//!
//! A check is made at each moment at which the answer can change, and at no other: after every step in effect. The moments
//! are steps that store into a word that the invariant speaks of ([`Machine::on_seen`]), and the step after which a CPU
//! takes interrupts again. All that an invariant says of "a CPU" is asked of the CPU that runs, as it sees its own words: a
//! store of its own counts from the moment of the store, under TSO too, where it may be in the buffer still. What it reads
//! of others it reads in memory, where under `weak` the newest store of each word is.
//!
//! The reduction explores only some orders of steps ([`lazytlb_machine`]'s `reduce.rs`), so each check has to say why none
//! that breaks its invariant is left out:
//!
//! * **I1**, hardware: `watch.rs`, at each free of a table and each load of a root; and the machine's walkers.
//!   The verdict is `hardware-reaches`.
//! * **I2**, `active_mm`: when interrupts come on, and at each store into `rq->curr`, `task.mm`, `active_mm` or the parked
//!   borrow while they are on. These words are written by the CPU itself, so nobody's steps in between matter.
//! * **I3** as the tasks of section 1.2 have it holds by construction: `active_mm` lives with the CPU. What is left of it
//!   is that no borrow is *kept* for a task that does not run: a CPU that runs a user, or is on `init_mm`, publishes no
//!   borrow, and a CPU that runs a user has none parked. Asked together with I2, of the CPU's own words.
//! * **I4**, borrows begin with a user: when `rq->curr` or `task.mm` changes so that a CPU goes on without the mm that its
//!   task had. `users` is written by others. Where the task has adopted the mm, and relies on a user of somebody else, it is
//!   read in a step of its own ([`Machine::look_step`]), before which they can go. A task's own user only the task puts: it
//!   is looked at all the same, and whoever puts it without owning it brings `users` below zero when the task puts it.
//! * **I5**, the count: at each step that lowers it, it is at least what can be accounted for at that moment: one for the
//!   users, one for each reference of a script or an adopting task, one for each counted borrow of a CPU that is not in the
//!   middle of a switch, one for each parked, one for each in a `drop_mm`. More is no mistake then: a switch, an exit and a
//!   reclaimer take a reference before they name it, and forget a name before they drop. At the end, when nobody is in the
//!   middle of anything, it is equal (`audit.rs`). Who else reads these words does not matter: a count that is too
//!   low stays too low by whatever is done right later, so an order that is not explored ends in the same wrong account.
//! * **I6**, the mask: at the step in which `count` reaches zero, and under `UsersOnly` `users`. What it reads is noted
//!   ([`Machine::inspect`]); the step is a choice point.
//! * **I7**, slots: the slot is asked together with I2. It is asked whether the MMU has left at each store that empties the
//!   slot; both are the CPU's own. That a reclaimer comes late is asked at each load of a slot by another CPU: some mm must
//!   be without users then. `users` never rises from zero, so what is read there cannot become wrong later.
//!   Under the epoch strategies the CPU's counter is its slot.
//! * **I8**, hotplug: when a CPU is past `sched_cpu_wait_empty`, and at each store into its `active_mm` from then on until
//!   it is online again. Its own words.
//! * **I9**, translations: each user access (`tlb.rs`). The verdict is `stale-translation`.
//! * **I10**, contents: a user that nobody owns is for ever what it is at the end of an execution, so it is asked there: the
//!   users are the tasks that have the mm and the users that scripts hold. `must-be-reaped` asks earlier.
//! * **I11**, freeing: each time a last reference is dropped, and where freeing may sleep each time an mm is freed. The
//!   verdicts are `warning` and `sleeping-while-atomic`.
//! * **I12**, the last put: each time contents are torn down. The verdict is `sleeping-while-atomic`.
//!
//! Beside them: a strategy's promise to interrupt no isolated CPU in order to end its borrow
//! ([`LazyTlb::spares_isolated`](lazytlb_core::LazyTlb::spares_isolated)) is asked at the store of each call to other CPUs, behind
//! which the targets are interrupted. The call and its targets are the CPU's own words. The verdict is `assertion`.
//!
//! A broken invariant that has no verdict of its own is `invariant`, a finding: the execution goes on, and what comes of it
//! is found as well. Every message begins with the invariant's name.

use core::fmt;

use lazytlb_core::CpuId;
use lazytlb_core::memory::{LocalWord, Ordering::Relaxed};
use lazytlb_core::mm::{Mm, MmPtr};
use lazytlb_core::platform::Platform;
use lazytlb_core::smp::Call;
use lazytlb_machine::{Kind, Machine, ObjectKind, Seen, SimLocal, Verdict};

use crate::accounted::{Accounted, NeedsMask, Published};
use crate::platform::{Lab, MmData, address, peek};
use crate::program::Program;
use crate::world::World;

/// An invariant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Invariant {
    /// What hardware can reach is not freed.
    I1,
    /// A user task runs on its own mm.
    I2,
    /// Nothing is borrowed for a task that does not run.
    I3,
    /// Borrows begin while there is a user.
    I4,
    /// References are counted.
    I5,
    /// The mask holds every borrower when it is needed.
    I6,
    /// Slots name what is borrowed.
    I7,
    /// A CPU that goes borrows nothing.
    I8,
    /// No stale translation is used.
    I9,
    /// Contents are not pinned for ever.
    I10,
    /// Nothing is freed where that may not be.
    I11,
    /// Nothing is torn down where nobody may sleep.
    I12,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Invariant; 12] = [
        Invariant::I1,
        Invariant::I2,
        Invariant::I3,
        Invariant::I4,
        Invariant::I5,
        Invariant::I6,
        Invariant::I7,
        Invariant::I8,
        Invariant::I9,
        Invariant::I10,
        Invariant::I11,
        Invariant::I12,
    ];

    /// Its name, with which messages begin.
    pub const fn name(self) -> &'static str {
        ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12"][self as usize]
    }

    /// What it says.
    pub const fn sentence(self) -> &'static str {
        match self {
            Invariant::I1 => "if a CPU has a root loaded, no table that can be reached from it is freed",
            Invariant::I2 => "a CPU that takes interrupts and runs a task with an mm has that mm as active_mm",
            Invariant::I3 => {
                "a CPU that takes interrupts and runs a task with an mm, or is on init_mm, publishes no borrow, and in the first case has none parked"
            }
            Invariant::I4 => "no borrow of an mm begins when it has no users",
            Invariant::I5 => {
                "count is never below what can be accounted for, and is equal to it when nobody is in the middle of a change"
            }
            Invariant::I6 => {
                "when the last reference goes (under users-only the last user), the mask holds every CPU that has the mm as active_mm"
            }
            Invariant::I7 => {
                "a CPU that takes interrupts and borrows publishes what it borrows, until its MMU has left it; nobody else looks for borrowers while every mm has users"
            }
            Invariant::I8 => {
                "a CPU that has left what it borrowed in order to go offline is on init_mm until it is online again"
            }
            Invariant::I9 => "after a flush no CPU uses a translation that is older than it",
            Invariant::I10 => "an mm whose tasks are gone has no users but those that somebody is going to put",
            Invariant::I11 => {
                "the last reference is not dropped in an interrupt, and on a real-time kernel not in the tail of a switch"
            }
            Invariant::I12 => "the last user is not put where one may not sleep",
        }
    }

    /// The invariant that a verdict shows broken, if it shows that of one.
    pub fn shown_by(verdict: &Verdict) -> Option<Invariant> {
        let named = verdict.message.split_once(": ").map(|(name, _)| name);
        let named = Invariant::ALL.into_iter().find(|invariant| named == Some(invariant.name()));
        // What the machine itself says of hardware has no names.
        named.or_else(|| (verdict.kind == Kind::HardwareReaches).then_some(Invariant::I1))
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What no word of the library says. In the arena, so that it is part of what tells states apart.
#[derive(Debug)]
pub(crate) struct Books {
    /// The users that scripts hold, for each address space.
    users: &'static [SimLocal<usize>],
    /// Whether a task has adopted what it runs on, and owns no user of it.
    adopted: &'static [SimLocal<usize>],
    /// Whether a CPU has left what it borrowed in order to go offline.
    empty: &'static [SimLocal<usize>],
    /// Where `users` of each slot for an mm is.
    users_at: Vec<usize>,
}

impl Books {
    pub(crate) fn place(machine: &Machine, program: &Program, users_at: Vec<usize>) -> Books {
        let place = |name, count, init: &dyn Fn(usize) -> usize| {
            let placed: *const [SimLocal<usize>] =
                machine.place_slice(name, ObjectKind::Other, count, |index| LocalWord::new(init(index)));
            // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
            unsafe { &*placed }
        };
        let (cpus, mms) = (machine.config().cpus, program.mms.len());
        Books {
            users: place("held_users", mms, &|mm| program.held[mm].0),
            adopted: place("adopted", program.tasks.len() + cpus, &|_| 0),
            empty: place("empty", cpus, &|_| 0),
            users_at,
        }
    }

    /// What is written of a task.
    pub(crate) fn of_task(&self, task: usize) -> *const SimLocal<usize> {
        &raw const self.adopted[task]
    }

    /// What is written of an address space.
    pub(crate) fn of_mm(&self, mm: usize) -> *const SimLocal<usize> {
        &raw const self.users[mm]
    }

    /// A task begins to adopt what it runs on, or has given it back.
    pub(crate) fn adopts(&self, task: usize, adopts: bool) {
        self.adopted[task].poke(usize::from(adopts));
    }

    /// A script puts a user that it holds.
    pub(crate) fn puts(&self, mm: usize) {
        self.users[mm].poke(self.users[mm].peek().saturating_sub(1));
    }

    /// A CPU has left what it borrowed in order to go offline, or is back.
    pub(crate) fn is_empty(&self, cpu: usize, empty: bool) {
        self.empty[cpu].poke(usize::from(empty));
    }
}

/// What is watched, each with the number of the CPU, the task or the slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Word {
    Curr,
    TaskMm,
    ActiveMm,
    PrevMm,
    Count,
    Users,
    Slot,
    Call,
}

impl Word {
    const ALL: [Word; 8] =
        [Word::Curr, Word::TaskMm, Word::ActiveMm, Word::PrevMm, Word::Count, Word::Users, Word::Slot, Word::Call];

    fn tag(self, index: usize) -> u16 {
        (self as u16) << 8 | index as u16
    }

    fn of(tag: u16) -> (Word, usize) {
        (Word::ALL[usize::from(tag >> 8)], usize::from(tag & 0xff))
    }
}

fn fail(machine: &Machine, invariant: Invariant, message: &str) {
    machine.fail(Kind::Invariant, format!("{invariant}: {message}"));
}

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// The addresses of `users` of all slots for mms.
    pub(crate) fn words_of_users(
        machine: &Machine,
        mms: lazytlb_machine::Cache<Mm<Lab<R>, S>>,
        slots: usize,
    ) -> Vec<usize> {
        let address_of_users = |slot| {
            // SAFETY: in the arena; slots are initialised once and for all.
            let mm = unsafe { machine.slot(mms, slot).as_ref() };
            Machine::words_read(|| mm.core().users())
        };
        (0..slots).flat_map(address_of_users).collect()
    }

    /// Has the machine tell of what the invariants speak of.
    pub(crate) fn watch_invariants(world: &std::rc::Rc<Self>, machine: &Machine) {
        let switcher = world.switcher;
        for index in 0..machine.config().cpus {
            let cpu = switcher.cpu(CpuId::new(index));
            machine.watch_stores(Word::Curr.tag(index), || cpu.curr());
            machine.watch_stores(Word::ActiveMm.tag(index), || cpu.active_mm());
            machine.watch_stores(Word::PrevMm.tag(index), || cpu.prev_mm());
            // SAFETY: it is only read.
            let of_strategy = unsafe { cpu.strategy() };
            machine.watch_accesses(Word::Slot.tag(index), || switcher.strategy().publishes(of_strategy));
            if switcher.strategy().spares_isolated() && !world.program.isolated.is_empty() {
                machine.watch_stores(Word::Call.tag(index), || cpu.calls().call());
            }
        }
        for (index, task) in world.tasks.iter().enumerate() {
            machine.watch_stores(Word::TaskMm.tag(index), || task.mm());
        }
        for slot in 0..world.slots {
            let mm = world.mm_at(machine, slot);
            machine.watch_stores(Word::Count.tag(slot), || mm.core().count());
            machine.watch_stores(Word::Users.tag(slot), || mm.core().users());
        }
        let world = std::rc::Rc::clone(world);
        machine.on_seen(move |machine, seen| world.seen(machine, seen));
    }

    fn mm_at(&self, machine: &Machine, slot: usize) -> &'static Mm<Lab<R>, S> {
        // SAFETY: in the arena; slots are initialised once and for all.
        unsafe { machine.slot(self.mms, slot).as_ref() }
    }

    /// A step has touched something.
    fn seen(&self, machine: &Machine, seen: Seen) {
        match seen {
            Seen::InterruptsOn => self.check_own(machine),
            Seen::Loaded { tag } => self.check_reclaimer(machine, Word::of(tag).1),
            Seen::Stored { tag, before, after } => match Word::of(tag) {
                (Word::Curr, _) => {
                    self.check_own_if_on(machine);
                    if let (Some(task), None) = (self.task_at(before), self.mm_at_task(self.task_at(after))) {
                        self.check_beginning(machine, task, address(self.mm_at_task(Some(task))));
                    }
                }
                (Word::TaskMm, task) => {
                    self.check_own_if_on(machine);
                    if after == 0 {
                        self.check_beginning(machine, task, before as usize);
                    }
                }
                (Word::ActiveMm, cpu) => {
                    self.check_own_if_on(machine);
                    if self.books.empty[cpu].peek() != 0 {
                        self.check_empty(machine, cpu);
                    }
                }
                (Word::PrevMm, _) => self.check_own_if_on(machine),
                (Word::Count, slot) => {
                    if after == 0 && self.switcher.strategy().needs_mask() == NeedsMask::WithoutReferences {
                        self.check_mask(machine, slot);
                    }
                    if after < before {
                        self.check_count(machine, slot);
                    }
                }
                (Word::Users, slot) => {
                    if after == 0 && self.switcher.strategy().needs_mask() == NeedsMask::WithoutUsers {
                        self.check_mask(machine, slot);
                    }
                }
                (Word::Slot, cpu) => self.check_emptied_slot(machine, cpu),
                (Word::Call, cpu) => self.check_call(machine, cpu),
            },
        }
    }

    /// The task at an address.
    fn task_at(&self, at: u64) -> Option<usize> {
        self.tasks.iter().position(|task| core::ptr::from_ref(task).addr() == at as usize)
    }

    fn mm_at_task(&self, task: Option<usize>) -> Option<MmPtr<Lab<R>>> {
        peek(|| self.tasks[task?].mm())
    }

    fn published(&self, machine: &Machine, cpu: usize) -> Published<Lab<R>> {
        // SAFETY: it is only read.
        let of_strategy = unsafe { self.switcher.cpu(CpuId::new(cpu)).strategy() };
        machine.as_this_cpu_sees(|| self.switcher.strategy().publishes(of_strategy))
    }

    fn check_own_if_on(&self, machine: &Machine) {
        if machine.irqs_are_on(machine.this_cpu()) {
            self.check_own(machine);
        }
    }

    /// The running CPU takes interrupts: I2, I3 and I7, of its own words.
    fn check_own(&self, machine: &Machine) {
        let cpu = machine.this_cpu();
        let state = self.switcher.cpu(CpuId::new(cpu));
        let Some(active) = peek(|| state.active_mm()) else { return };
        let of_task = self.current_mm(cpu);
        let published = self.published(machine, cpu);
        let name = |mm| self.name_of(address(Some(mm)));
        match of_task {
            Some(of_task) if of_task != active => {
                let message =
                    format!("cpu{cpu} runs a task of {} and has {} as active_mm", name(of_task), name(active));
                fail(machine, Invariant::I2, &message);
            }
            _ => {}
        }
        let borrows = of_task.is_none() && active != MmPtr::from(self.switcher.init_mm().core());
        if !borrows && published.is_something() {
            fail(machine, Invariant::I3, &format!("cpu{cpu} borrows nothing and publishes a borrow"));
        }
        if of_task.is_some()
            && let Some(parked) = peek(|| state.prev_mm())
        {
            let message = format!("cpu{cpu} runs a task of its own mm and keeps a borrow of {}", name(parked));
            fail(machine, Invariant::I3, &message);
        }
        if borrows && !published.covers(active) {
            fail(machine, Invariant::I7, &format!("cpu{cpu} borrows {} and does not publish it", name(active)));
        }
    }

    /// The running CPU goes on without the mm at `at` that a task of it had, if it had one: I4.
    fn check_beginning(&self, machine: &Machine, task: usize, at: usize) {
        if !self.switcher.strategy().borrows() {
            return;
        }
        let slot = (0..self.slots).find(|&slot| machine.slot(self.mms, slot).as_ptr().addr() == at);
        let Some(slot) = slot else { return };
        let users = match self.books.adopted[task].peek() {
            0 => peek(|| self.mm_at(machine, slot).core().users()),
            _ => machine.look_step(self.books.users_at[slot]),
        };
        if users == 0 {
            let message =
                format!("cpu{} begins to borrow {}, which has no users", machine.this_cpu(), self.name_of(at));
            fail(machine, Invariant::I4, &message);
        }
    }

    /// The count of an mm was lowered: I5.
    fn check_count(&self, machine: &Machine, slot: usize) {
        let mm = self.mm_at(machine, slot);
        let at = core::ptr::from_ref(mm).addr();
        // A CPU in the middle of a switch may have named what it is about to count.
        let is_settled = |cpu| machine.irqs_are_on(cpu) || machine.is_in_irq(cpu);
        let (count, expected) = peek(|| (mm.core().count(), self.expected_count(machine, mm, at, is_settled)));
        if count < expected {
            let name = self.name_of(at);
            fail(machine, Invariant::I5, &format!("{name} has a count of {count}; {expected} can be accounted for"));
        }
    }

    /// An mm has lost what the mask is needed without: I6.
    fn check_mask(&self, machine: &Machine, slot: usize) {
        let mm = self.mm_at(machine, slot).core();
        let is_missed = |&cpu: &usize| {
            let cpu = CpuId::new(cpu);
            machine.inspect(|| {
                self.switcher.cpu(cpu).active_mm() == Some(MmPtr::from(mm)) && !mm.cpumask().test_cpu(cpu, Relaxed)
            })
        };
        if let Some(cpu) = (0..self.program.cpus()).find(is_missed) {
            let name = self.name_of(core::ptr::from_ref(mm).addr());
            fail(machine, Invariant::I6, &format!("cpu{cpu} has {name} as active_mm and is not in its mask"));
        }
    }

    /// A slot was stored into: I7, if it is empty now.
    fn check_emptied_slot(&self, machine: &Machine, cpu: usize) {
        if cpu != machine.this_cpu() || !matches!(self.published(machine, cpu), Published::Nothing) {
            return;
        }
        let root = self.mmus.root(cpu);
        // SAFETY: the task has a user of it, or a reference.
        let of_task = self.current_mm(cpu).map(|mm| peek(|| unsafe { mm.as_ref() }.root()));
        let left = [Some(peek(|| self.switcher.init_mm().core().root())), of_task];
        if !left.into_iter().flatten().any(|allowed| allowed.0 == root) {
            fail(machine, Invariant::I7, &format!("cpu{cpu} publishes its borrow no more and its MMU is still on it"));
        }
    }

    /// A slot was loaded: I7, if by another CPU.
    fn check_reclaimer(&self, machine: &Machine, cpu: usize) {
        if cpu == machine.this_cpu() {
            return;
        }
        let without_users = |slot: usize| {
            let object = machine.slot(self.mms, slot);
            machine.is_live(object.as_ptr()) && peek(|| self.mm_at(machine, slot).core().users()) == 0
        };
        if !(0..self.slots).any(without_users) {
            let message = format!("cpu{} looks for borrowers while every mm has users", machine.this_cpu());
            fail(machine, Invariant::I7, &message);
        }
    }

    /// A CPU has written down what it asks of others. Under a strategy that spares isolated CPUs none of these is to end its
    /// borrow.
    fn check_call(&self, machine: &Machine, cpu: usize) {
        let calls = self.switcher.cpu(CpuId::new(cpu)).calls();
        let is_asked = |&other: &usize| {
            machine.as_this_cpu_sees(|| {
                calls.call().is_some_and(Call::evicts) && calls.pending().test_cpu(CpuId::new(other), Relaxed)
            })
        };
        if let Some(other) = self.program.isolated.iter().copied().find(is_asked) {
            let message = format!("cpu{cpu} interrupts cpu{other} to end its borrow, which is to be left alone");
            machine.fail(Kind::Assertion, message);
        }
    }

    /// The running CPU is past `sched_cpu_wait_empty`: I8, from here on.
    pub(crate) fn waits_empty(&self) {
        Machine::with(|machine| {
            let cpu = machine.this_cpu();
            self.books.is_empty(cpu, true);
            self.check_empty(machine, cpu);
        });
    }

    fn check_empty(&self, machine: &Machine, cpu: usize) {
        let active = peek(|| self.switcher.cpu(CpuId::new(cpu)).active_mm());
        if active != Some(MmPtr::from(self.switcher.init_mm().core())) {
            let message = format!("cpu{cpu} is going offline and has {} as active_mm", self.name_of(address(active)));
            fail(machine, Invariant::I8, &message);
        }
    }

    /// At the end: I10.
    pub(crate) fn check_contents(&self, machine: &Machine, mm: &Mm<Lab<R>, S>, name: &str) {
        let at = core::ptr::from_ref(mm).addr();
        let of_tasks = self
            .tasks
            .iter()
            .enumerate()
            .filter(|&(task, words)| address(peek(|| words.mm())) == at && self.books.adopted[task].peek() == 0);
        let of_scripts = (0..self.named.len()).filter(|&named| self.named[named].peek().addr() == at);
        let owned = of_tasks.count() + of_scripts.map(|named| self.books.users[named].peek()).sum::<usize>();
        let users = mm.core().users();
        if users > owned {
            let message = format!("{name} has {users} users for ever, and {owned} that somebody owns");
            fail(machine, Invariant::I10, &message);
        }
    }
}
