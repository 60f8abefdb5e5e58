//! [`World`]: an address space, the tasks that change it, the devices that mirror it, and what is checked at every statement.

use core::fmt;
use core::panic::Location;
use core::ptr::NonNull;
use std::rc::Rc;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Ordering::*};
use lazytlb_machine::report::Section;
use lazytlb_machine::{Kind, Machine, ObjectKind, SimLocal, SimWord};
use lazytlb_mmu_notifier::former::{Form, FormerChain};
use lazytlb_mmu_notifier::rmap::RmapChain;
use lazytlb_mmu_notifier::{Event, NotifierKernel, Range, RegisterError};

use crate::device::{Device, Fault, Subscription};
use crate::kernel::{AnyWalks, LabMm, LabNotifier, Lock, TaskWords, in_world, locals, placed, shared, this_task};
use crate::memory::{PageHead, Pages, WRITABLE};
use crate::model::Setting;
use crate::names::Mutant;
use crate::program::{Program, Statement};
use crate::rules::Invariant;

/// The most invalidations that a task may have begun and not ended.
pub(crate) const DEEPEST: usize = 4;

/// A program on its machine.
pub struct World {
    program: Program,
    mutant: Option<Mutant>,
    pub(crate) walks: &'static AnyWalks,
    pub(crate) words: &'static [TaskWords],
    pub(crate) pages: Pages,
    /// Who keeps reverse maps of its own.
    pub(crate) rmap: &'static RmapChain<LabNotifier, PageHead>,
    pub(crate) devices: Vec<Device>,
    mm: NonNull<LabMm>,
    locks: &'static [Lock],
    /// 1 while the task that runs looks at what it waits for.
    looks: &'static [SimLocal<usize>],
    /// The tasks whose scripts are over, a bit each.
    over: &'static SimWord<usize>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program.name)
    }
}

impl lazytlb_machine::World for World {
    fn runs<R>(&self, f: impl FnOnce() -> R) -> R {
        in_world(self, f)
    }

    fn facts(&self, machine: &Machine) -> Vec<Section> {
        let facts = self.runs(|| {
            let mut facts = self.pages.facts(machine, &self.program);
            facts.extend(self.devices.iter().flat_map(|device| device.facts(machine, &self.program)));
            facts
        });
        vec![("What is mapped, in the end", facts), ("Planted", self.mutant.iter().map(ToString::to_string).collect())]
    }
}

impl World {
    /// Places a program on a machine.
    pub(crate) fn set_up(machine: &Machine, program: &Program, setting: &Setting) -> Rc<World> {
        let form = program.form.unwrap_or(Form::REVIEWED);
        let mm = machine.create_cache("mm_struct", ObjectKind::Mm, 1, |_| LabMm::new(form));
        let lock = |lock| Lock::new(program.mutexes.contains(&lock));
        let world = Rc::new(World {
            program: program.clone(),
            mutant: setting.mutant,
            walks: placed(machine.place("walks", ObjectKind::Other, AnyWalks::new(setting.scheme))),
            words: placed(
                machine.place_slice("task_struct", ObjectKind::Task, program.tasks.len(), |_| TaskWords::new()),
            ),
            pages: Pages::place(machine, program),
            rmap: placed(machine.place("mmu_rmap_notifiers", ObjectKind::Other, RmapChain::new(form))),
            devices: (0..program.devices.len()).map(|device| Device::place(machine, program, device)).collect(),
            mm: machine.alloc_at_setup(mm),
            locks: placed(machine.place_slice("lock", ObjectKind::Other, program.locks.len(), lock)),
            looks: locals(machine, "looks", program.tasks.len()),
            over: &shared(machine, "over", 1)[0],
        });
        world.boot(machine);
        world
    }

    fn boot(self: &Rc<Self>, machine: &Machine) {
        for (task, name) in self.program.tasks.iter().enumerate() {
            let world = Rc::clone(self);
            machine.boot(machine.add_task(name, move || world.run(task)), true);
        }
        let ends = Rc::clone(self);
        machine.at_end(move |machine| in_world(&ends, || ends.end(machine)));
        for device in &self.devices {
            device.boot(&self.pages);
        }
        in_world(self, || {
            for (device, _) in self.devices.iter().zip(&self.program.devices).filter(|(_, one)| one.subscribed) {
                self.register(device);
            }
        });
    }

    /// The mm's struct, there or not.
    pub(crate) fn mm(&self) -> &'static LabMm {
        // SAFETY: in the arena; whoever uses it when it is freed is found by the words that it uses.
        unsafe { &*self.mm.as_ptr() }
    }

    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether the chain's lock is not taken now: planted, waits look without it.
    pub(crate) fn looks_unlocked(&self) -> bool {
        self.has(Mutant::WaitsUnlocked) && self.looks[this_task()].peek() != 0
    }

    /// The sequence of each interval subscriber must be odd.
    pub(crate) fn checks_sequences(&self) {
        for device in &self.devices {
            let Subscription::Interval(node) = device.driver.subscription() else { continue };
            if Machine::with(|machine| machine.inspect(|| node.seq() & 1 == 0)) {
                Invariant::I12.broken(core::ptr::from_ref(node));
            }
        }
    }

    /// A task looks whether what it waits for has come.
    pub(crate) fn waits<R>(&self, ready: impl FnOnce() -> R) -> R {
        self.looks[this_task()].poke(1);
        let result = ready();
        self.looks[this_task()].poke(0);
        result
    }

    /// Planted: a callback sleeps, whatever it was told.
    pub(crate) fn may_sleep_wrongly(&self) {
        if self.has(Mutant::Sleeps) {
            LabNotifier.might_sleep();
        }
    }

    /// Planted: a callback takes a reference to the address space's users, if it can, and gives it back.
    pub(crate) fn puts_mm(&self) {
        if self.mmget_not_zero() {
            self.mmput();
        }
    }

    /// One more user of the address space, if it has any.
    fn mmget_not_zero(&self) -> bool {
        let users = &self.mm().users;
        let mut seen = users.load(Relaxed);
        while seen != 0 {
            match users.compare_exchange(seen, seen + 1, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Planted: a driver takes a page's lock, and releases it.
    pub(crate) fn locks_page(&self) {
        if let Some(lock) = self.locks.first() {
            lock.lock();
            lock.unlock();
        }
    }

    /// Whether anybody mirrors the page table. Part of a step.
    pub(crate) fn is_mirrored(&self, machine: &Machine) -> bool {
        self.devices.iter().any(|device| device.is_subscribed(machine))
    }

    /// A task's life.
    fn run(&self, task: usize) {
        let script = &self.program.scripts[task];
        let mut started = Started::default();
        let mut position = 0;
        while let Some(&statement) = script.get(position) {
            // All that a task knows at the beginning of a statement is how far it has come, and what it has begun.
            Machine::with(|machine| machine.checkpoint((position as u64) << 8 | started.depth as u64, false));
            Machine::with(|machine| machine.frame_enter(name_of(statement), Location::caller()));
            let goes_on = self.execute(statement, &mut started);
            Machine::with(Machine::frame_leave);
            position = if goes_on { position + 1 } else { behind_end(script, position) };
        }
        Machine::with(|machine| machine.checkpoint((script.len() as u64) << 8, false));
        self.over.fetch_or(1 << task, Release);
    }

    /// Says whether the next statement follows; if not, the one behind the end of what was refused does.
    fn execute(&self, statement: Statement, started: &mut Started) -> bool {
        match statement {
            Statement::Start(first, last) => self.start(first, last, started),
            Statement::StartNonblock(first, last) => return self.start_nonblock(first, last, started),
            Statement::End => self.end_of(started),
            Statement::Zap(entry) => self.pages.clear(entry, true),
            Statement::Clear(entry) => self.pages.clear(entry, false),
            Statement::Set(entry, page) => self.pages.set(entry, page),
            Statement::Protect(entry) => drop(self.pages.change(entry, |value| value & !WRITABLE)),
            Statement::Unprotect(entry) => drop(self.pages.change(entry, |value| value | WRITABLE)),
            Statement::Copy(page) => self.pages.copy(page),
            Statement::Free => self.pages.free_hand(),
            Statement::PageOut(entry) => self.pages.page_out(entry),
            Statement::TryToUnmap(entry) => self.pages.try_to_unmap(entry),
            Statement::PageMkclean(entry) => self.pages.page_mkclean(entry),
            Statement::Evict => self.pages.evict(),
            Statement::UnlinkTable => self.pages.unlink_table(),
            Statement::FreeTable => self.pages.free_table(),
            Statement::FlushTlb(entry) => self.flush_tlb(entry),
            Statement::Age(entry) => {
                let mm = self.mm();
                mm.chain.clear_flush_young(LabNotifier, mm, entry, entry + 1);
            }
            Statement::Store(entry) => self.pages.access(entry, true),
            Statement::Load(entry) => self.pages.access(entry, false),
            Statement::Fault(device, entry, most) => self.fault(&self.devices[device], entry, most),
            Statement::Write(device, entry) => self.devices[device].access(entry, true),
            Statement::Read(device, entry) => self.devices[device].access(entry, false),
            Statement::Register(device) => self.subscribes(&self.devices[device]),
            Statement::Unregister(device) => self.unregister(&self.devices[device]),
            Statement::Get(device) => self.get(&self.devices[device]),
            Statement::Put(device) => self.put(&self.devices[device]),
            Statement::Move(device, first, last) => {
                let device = &self.devices[device];
                device.driver.moves(device, first..=last);
            }
            Statement::Synchronize => match self.former() {
                Some(former) => former.synchronize(LabNotifier),
                None => self.mm().chain.synchronize(LabNotifier),
            },
            Statement::FreeDevice(device) => Machine::with(|machine| self.devices[device].driver.free(machine)),
            Statement::Exit => self.mmput(),
            Statement::Mmgrab => self.mmgrab(),
            Statement::Mmdrop => self.mmdrop(),
            Statement::Lock(lock) => self.locks[lock].lock(),
            Statement::Unlock(lock) => self.locks[lock].unlock(),
        }
        true
    }

    fn start(&self, first: usize, last: usize, started: &mut Started) {
        let mm = self.mm();
        mm.begins_to_invalidate();
        let range = range(first, last, Event::Clear);
        match self.former() {
            Some(former) => former.invalidate_range_start(LabNotifier, mm, &range),
            None => mm.chain.invalidate_range_start(LabNotifier, mm, &range),
        }
        self.pages.counts_invalidated(first..=last, |count| count + 1);
        started.push(Pair { first, last, blockable: true });
    }

    fn start_nonblock(&self, first: usize, last: usize, started: &mut Started) -> bool {
        let mm = self.mm();
        mm.begins_to_invalidate();
        let range = range(first, last, Event::Unmap);
        let result = match self.former() {
            Some(former) => former.invalidate_range_start_nonblock(LabNotifier, mm, &range),
            None => mm.chain.invalidate_range_start_nonblock(LabNotifier, mm, &range),
        };
        if result.is_err() {
            mm.has_invalidated();
            return false;
        }
        self.pages.counts_invalidated(first..=last, |count| count + 1);
        started.push(Pair { first, last, blockable: false });
        true
    }

    /// The end of the innermost one; of nothing, if nothing was begun: a mistake that the chain must bear.
    fn end_of(&self, started: &mut Started) {
        let mm = self.mm();
        let pair = started.pop();
        let Pair { first, last, blockable } = pair.unwrap_or(Pair { first: 0, last: 0, blockable: true });
        if pair.is_some() {
            self.pages.counts_invalidated(first..=last, |count| count - 1);
        }
        let event = if blockable { Event::Clear } else { Event::Unmap };
        let range = range(first, last, event);
        match self.former() {
            Some(former) => former.invalidate_range_end(LabNotifier, mm, &range, blockable),
            // SAFETY: the program's, which is checked for what comes of it.
            None => unsafe { mm.chain.invalidate_range_end(LabNotifier, mm, &range, blockable) },
        }
        if pair.is_some() {
            mm.has_invalidated();
        }
    }

    /// A driver tries until it has mapped an entry, or nothing is there to map; so often at most, if that is said.
    fn fault(&self, device: &Device, entry: usize, most: Option<usize>) {
        let mut tries = 1;
        while device.driver.fault(device, entry) == Fault::Again {
            if most.is_some_and(|most| tries >= most) {
                Invariant::I16.broken(core::ptr::from_ref(self.mm()));
            }
            tries += 1;
        }
    }

    fn flush_tlb(&self, entry: usize) {
        let mm = self.mm();
        // As under the lock of a page table: nothing may sleep.
        Machine::with(Machine::preempt_disable);
        mm.chain.arch_invalidate_secondary_tlbs(LabNotifier, mm, entry, entry + 1);
        Machine::with(Machine::preempt_enable);
    }

    /// A driver gets a user of the address space, if there is one left, and subscribes.
    fn subscribes(&self, device: &Device) {
        if !self.mmget_not_zero() {
            Machine::with(|machine| machine.fail(Kind::Warning, RegisterError::NoUsers.to_string()));
            return;
        }
        self.register(device);
        self.mmput();
    }

    fn register(&self, device: &Device) {
        let mm = self.mm();
        device.set_subscribed(true);
        let mut mmap = mm.mmap_write_lock();
        let registered = match device.driver.subscription() {
            Subscription::Rmap(node) => {
                // SAFETY: as below.
                unsafe { self.rmap.register(LabNotifier, node) };
                return;
            }
            // SAFETY: as below.
            Subscription::List(node) if self.former().is_some() => unsafe {
                mm.former.register(LabNotifier, &mut mmap, node)
            },
            // SAFETY: the driver stays until it has unsubscribed, or a test wants to see what comes of that; the reference is taken below.
            Subscription::List(node) => unsafe { mm.chain.register(LabNotifier, &mut mmap, node) },
            Subscription::Interval(node) => {
                let (start, length) = (*device.entries.start(), device.entries.clone().count());
                // SAFETY: as above.
                unsafe { mm.chain.insert_interval(LabNotifier, &mut mmap, node, start, length) }
            }
        };
        match registered {
            Ok(()) => self.mmgrab(),
            Err(error) => {
                device.set_subscribed(false);
                Machine::with(|machine| machine.fail(Kind::Warning, error.to_string()));
            }
        }
    }

    fn unregister(&self, device: &Device) {
        let mm = self.mm();
        device.driver.closes();
        let unregistered = match device.driver.subscription() {
            // SAFETY: as below.
            Subscription::Rmap(node) => unsafe { self.rmap.unregister(LabNotifier, node) },
            // SAFETY: as below; where the form does not wait the test does, or wants to see what comes of that.
            Subscription::List(node) if self.former().is_some() => unsafe {
                mm.former.unregister(LabNotifier, mm, node)
            },
            // SAFETY: one task unsubscribes, or a test wants to see what comes of two.
            Subscription::List(node) => unsafe { mm.chain.unregister(LabNotifier, mm, node) },
            // SAFETY: as above.
            Subscription::Interval(node) => unsafe { mm.chain.remove_interval(LabNotifier, mm, node) },
        };
        match unregistered {
            Ok(()) => {
                let held = Machine::with(|machine| machine.inspect(|| device.is_subscribed(machine)));
                device.set_subscribed(false);
                if held {
                    self.mmdrop();
                }
            }
            Err(error) => Machine::with(|machine| machine.fail(Kind::Warning, error.to_string())),
        }
    }

    fn get(&self, device: &Device) {
        let mm = self.mm();
        let Subscription::List(node) = device.driver.subscription() else { return };
        let _mmap = mm.mmap_write_lock();
        // SAFETY: likewise.
        let got = unsafe { mm.chain.get(LabNotifier, |one| core::ptr::eq(one, node)) };
        device.is_got();
        if !matches!(got, Ok(Some(_))) {
            Machine::with(|machine| machine.fail(Kind::Warning, "it is not subscribed"));
        }
    }

    /// With the last user it is in no list. The reference to the mm is given back, and the driver freed, by who has waited.
    fn put(&self, device: &Device) {
        let Subscription::List(node) = device.driver.subscription() else { return };
        device.is_put();
        // SAFETY: the program's, which is checked for what comes of it.
        let _ = unsafe { self.mm().chain.put(LabNotifier, node) };
    }

    /// A user goes; the last one takes the address space with it.
    fn mmput(&self) {
        if self.mm().users.fetch_sub(1, AcqRel) == 1 {
            self.exit_mmap();
        }
    }

    /// Everybody is told, and then the pages go one by one.
    fn exit_mmap(&self) {
        let mm = self.mm();
        if !self.has(Mutant::ExitNotAnnounced) {
            match self.former() {
                Some(former) => former.release(LabNotifier, mm),
                None => mm.chain.release(LabNotifier, mm),
            }
        }
        for entry in 0..self.program.ptes.len() {
            let late = self.devices.iter().find(|device| {
                Machine::with(|machine| machine.inspect(|| device.is_subscribed(machine))) && !device.has_released()
            });
            if late.is_some() {
                Invariant::I6.broken(core::ptr::from_ref(mm));
            }
            let mut started = Started::default();
            self.start(entry, entry, &mut started);
            self.pages.clear(entry, true);
            self.flush_tlb(entry);
            self.pages.free_hand();
            self.end_of(&mut started);
        }
        self.mmdrop();
    }

    /// The list in a former form, where the test is of one.
    fn former(&self) -> Option<&'static FormerChain<LabNotifier>> {
        self.program.form.map(|_| &self.mm().former)
    }

    /// Planted: a driver unsubscribes when it is released, as the posting of 2008 says that it may.
    pub(crate) fn leave_former(&self, device: &Device) {
        if let (Some(former), Subscription::List(node)) = (self.former(), device.driver.subscription()) {
            // SAFETY: the driver stays until its release is over.
            let left = unsafe { former.unregister(LabNotifier, self.mm(), node) };
            if let Err(error) = left {
                Machine::with(|machine| machine.fail(Kind::Warning, error.to_string()));
            }
        }
    }

    fn mmgrab(&self) {
        self.mm().count.fetch_add(1, Relaxed);
    }

    fn mmdrop(&self) {
        let mm = self.mm();
        if mm.count.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        mm.chain.destroy(LabNotifier);
        let subscribed = |device: &Device| Machine::with(|machine| machine.inspect(|| device.is_subscribed(machine)));
        if self.devices.iter().any(subscribed) {
            Invariant::I9.broken(core::ptr::from_ref(mm));
        }
        Machine::with(|machine| machine.free(self.mm, Location::caller()));
    }

    /// What must be so when all scripts are over.
    fn end(&self, machine: &Machine) {
        if self.over.peek() != (1 << self.program.tasks.len()) - 1 {
            machine.fail(Kind::Deadlock, "a task has not come to its end");
            return;
        }
        for device in &self.devices {
            device.ends_cache(machine);
        }
        self.pages.check_end(machine, &self.program);
        for device in &self.devices {
            device.check_end(machine);
        }
    }
}

/// A pair that was begun.
#[derive(Clone, Copy, Default)]
struct Pair {
    first: usize,
    last: usize,
    blockable: bool,
}

/// The pairs that a task has begun and not ended.
#[derive(Default)]
struct Started {
    pairs: [Pair; DEEPEST],
    depth: usize,
}

impl Started {
    fn push(&mut self, pair: Pair) {
        self.pairs[self.depth] = pair;
        self.depth += 1;
    }

    fn pop(&mut self) -> Option<Pair> {
        self.depth = self.depth.checked_sub(1)?;
        Some(self.pairs[self.depth])
    }
}

fn range(first: usize, last: usize, event: Event) -> Range {
    Range::new(first..last + 1, event).expect("the last entry does not come before the first")
}

/// The statement behind the end of the pair that begins at a position.
fn behind_end(script: &[Statement], position: usize) -> usize {
    let mut depth = 0;
    for (at, statement) in script.iter().enumerate().skip(position) {
        match statement {
            Statement::Start(..) | Statement::StartNonblock(..) => depth += 1,
            Statement::End => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    script.len()
}

/// What reports call a statement.
fn name_of(statement: Statement) -> &'static str {
    match statement {
        Statement::Start(..) => "mmu_notifier_invalidate_range_start",
        Statement::StartNonblock(..) => "mmu_notifier_invalidate_range_start_nonblock",
        Statement::End => "mmu_notifier_invalidate_range_end",
        Statement::Zap(_) | Statement::Clear(_) => "ptep_get_and_clear",
        Statement::Set(..) => "set_pte",
        Statement::Protect(_) => "ptep_set_wrprotect",
        Statement::Unprotect(_) => "ptep_set_access_flags",
        Statement::Copy(_) => "copy_highpage",
        Statement::Free => "put_page",
        Statement::PageOut(_) => "swap_writepage",
        Statement::TryToUnmap(_) => "try_to_unmap",
        Statement::PageMkclean(_) => "page_mkclean",
        Statement::Evict => "mmu_rmap_invalidate_page",
        Statement::UnlinkTable => "pmd_clear",
        Statement::FreeTable => "pte_free",
        Statement::FlushTlb(_) => "flush_tlb_page",
        Statement::Age(_) => "folio_referenced",
        Statement::Store(_) => "store",
        Statement::Load(_) => "load",
        Statement::Fault(..) => "device_fault",
        Statement::Write(..) => "device_write",
        Statement::Read(..) => "device_read",
        Statement::Register(_) => "mmu_notifier_register",
        Statement::Unregister(_) => "mmu_notifier_unregister",
        Statement::Get(_) => "mmu_notifier_get",
        Statement::Put(_) => "mmu_notifier_put",
        Statement::Move(..) => "rereg_user_mr",
        Statement::Synchronize => "mmu_notifier_synchronize",
        Statement::FreeDevice(_) => "kfree",
        Statement::Exit => "exit_mmap",
        Statement::Mmgrab => "mmgrab",
        Statement::Mmdrop => "mmdrop",
        Statement::Lock(_) => "lock",
        Statement::Unlock(_) => "unlock",
    }
}
