//! What is mapped: the page table, pages with their references, and what each task and device has written.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Ordering::*};
use lazytlb_machine::{Cache, Kind, Machine, ObjectKind, SimLocal, SimWord};
use lazytlb_mmu_notifier::rmap::RmapPage;

use crate::kernel::{LabNotifier, Lock, locals, placed, shared, this_task, world};
use crate::program::Program;
use crate::rules::Invariant;

/// A page of memory: who has written into it; a bit for each task, and for each device behind those.
type Page = SimWord<usize>;

/// A bit of an entry, and of a device's translation: the page may be written.
pub(crate) const WRITABLE: usize = 1;

/// A bit of what a device's TLB has: the page was written by it.
pub(crate) const DIRTY: usize = 2;

/// Where the page of an entry is.
pub(crate) fn frame(value: usize) -> usize {
    value & !(WRITABLE | DIRTY)
}

/// In [`Pages::saved`]: the page is there.
const PAGED_OUT: usize = 1 << 32;

/// What the kernel knows of a page, whether it is free or not (Linux `struct page`).
pub(crate) struct PageHead {
    /// Where the page is.
    at: usize,
    /// The page's lock.
    pub(crate) lock: Lock,
    /// Whether somebody maps it who keeps reverse maps of its own.
    external: SimWord<usize>,
}

impl PageHead {
    /// Where the page is, as entries have it.
    pub(crate) fn frame(&self) -> usize {
        self.at
    }

    /// Somebody maps it at the start.
    pub(crate) fn boot_exported(&self) {
        self.external.poke(1);
    }
}

impl RmapPage for PageHead {
    fn external_rmap(&self) -> bool {
        self.external.load(Relaxed) != 0
    }

    fn set_external_rmap(&self, exported: bool) {
        self.external.store(usize::from(exported), Relaxed);
    }
}

/// Who uses memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum User {
    Task(usize),
    Device(usize),
}

/// The page table and the pages.
pub(crate) struct Pages {
    tasks: usize,
    /// The page table: where each page is, and [`WRITABLE`].
    pub(crate) entries: &'static [SimWord<usize>],
    /// The page that the table is in, and what leads to it: 1 while it does.
    table: NonNull<SimWord<usize>>,
    linked: &'static SimWord<usize>,
    pages: Vec<NonNull<Page>>,
    heads: &'static [PageHead],
    /// The references to each page, of the entries that map it, and of who holds it. Theirs whether it is free or not (Linux `struct page`).
    refs: &'static [SimWord<usize>],
    /// How many invalidations go on of each entry, as far as their callers know.
    invalidated: &'static [SimWord<usize>],
    /// Who has written through each entry, and is to be found in its page.
    wrote: &'static [SimWord<usize>],
    /// Where the page is that was thrown away from each entry: nobody looks for what is written to it until the end of that invalidation.
    thrown_away: &'static [SimWord<usize>],
    /// Which pages somebody has written, as the kernel knows it (Linux `PG_dirty`).
    dirty: &'static [SimWord<usize>],
    /// What the swap has of each entry: what was written, and [`PAGED_OUT`].
    saved: &'static [SimWord<usize>],
    /// The page in each task's hand; one more than its number.
    hand: &'static [SimLocal<usize>],
}

impl Pages {
    pub(crate) fn place(machine: &Machine, program: &Program) -> Pages {
        let cache: Cache<Page> =
            machine.create_cache("page", ObjectKind::Frame, program.pages.len().max(1), |_| AtomicWord::new(0));
        let boxes: Vec<NonNull<Page>> = program.pages.iter().map(|_| machine.alloc_at_setup(cache)).collect();
        let head = |page: usize| PageHead {
            at: boxes[page].as_ptr().expose_provenance(),
            lock: Lock::new(true),
            external: AtomicWord::new(0),
        };
        let table = machine.create_cache("page_table", ObjectKind::Table, 1, |_| AtomicWord::new(0));
        let pages = Pages {
            table: machine.alloc_at_setup(table),
            linked: &shared(machine, "pmd", 1)[0],
            tasks: program.tasks.len(),
            entries: placed(machine.place_slice("pte", ObjectKind::Table, program.ptes.len(), |_| AtomicWord::new(0))),
            heads: placed(machine.place_slice("struct page", ObjectKind::Other, program.pages.len(), head)),
            pages: boxes,
            refs: placed(
                machine.place_slice("_refcount", ObjectKind::Other, program.pages.len(), |_| AtomicWord::new(1)),
            ),
            invalidated: shared(machine, "invalidated", program.ptes.len()),
            wrote: shared(machine, "wrote", program.ptes.len()),
            thrown_away: shared(machine, "thrown_away", program.ptes.len()),
            dirty: shared(machine, "PG_dirty", program.pages.len()),
            saved: shared(machine, "swap", program.ptes.len()),
            hand: locals(machine, "hand", program.tasks.len()),
        };
        pages.linked.poke(1);
        for &(entry, page) in &program.mapped {
            let writable = if program.protected.contains(&entry) { 0 } else { WRITABLE };
            pages.entries[entry].poke(pages.frame_of(page) | writable);
        }
        pages
    }

    fn frame_of(&self, page: usize) -> usize {
        self.pages[page].as_ptr().expose_provenance()
    }

    /// The page that an entry or a translation of this value leads to.
    pub(crate) fn page_of(&self, value: usize) -> Option<usize> {
        self.pages.iter().position(|page| page.as_ptr().addr() == frame(value))
    }

    fn page(&self, page: usize) -> &'static Page {
        // SAFETY: in the arena, allocated or not.
        unsafe { &*self.pages[page].as_ptr() }
    }

    /// An invalidation has begun, or is about to end.
    pub(crate) fn counts_invalidated(&self, entries: impl Iterator<Item = usize>, change: impl Fn(usize) -> usize) {
        Machine::with(|machine| {
            machine.agent_step(|| {
                for entry in entries {
                    let word = &self.invalidated[entry];
                    machine.put(word, change(machine.look(word)));
                }
            });
        });
    }

    /// Whether an entry is being invalidated. Part of a step.
    pub(crate) fn is_invalidated(&self, machine: &Machine, entry: usize) -> bool {
        machine.look(&self.invalidated[entry]) > 0
    }

    /// An entry is changed: one step. What is mapped already may be mirrored, and whoever mirrors it must have been told.
    #[track_caller]
    pub(crate) fn change(&self, entry: usize, change: impl Fn(usize) -> usize) -> usize {
        let (old, is_told) = Machine::with(|machine| {
            machine.agent_step(|| {
                let old = machine.look(&self.entries[entry]);
                let new = change(old);
                machine.put(&self.entries[entry], new);
                let takes_away = old != 0 && (frame(new) != frame(old) || new & WRITABLE < old & WRITABLE);
                let is_told = !takes_away || self.is_invalidated(machine, entry) || !world().is_mirrored(machine);
                (old, is_told)
            })
        });
        if !is_told {
            Invariant::I14.broken(&raw const self.entries[entry]);
        }
        old
    }

    /// An entry is cleared: its page is in the task's hand. `goes` says that what was written goes with it.
    #[track_caller]
    pub(crate) fn clear(&self, entry: usize, goes: bool) {
        let old = self.change(entry, |_| 0);
        if goes {
            self.wrote[entry].store(0, Relaxed);
            self.thrown_away[entry].poke(frame(old));
        }
        self.hand[this_task()].poke(self.page_of(old).map_or(0, |page| page + 1));
    }

    /// An entry is set.
    #[track_caller]
    pub(crate) fn set(&self, entry: usize, page: usize) {
        let value = self.frame_of(page) | WRITABLE;
        self.change(entry, |_| value);
    }

    /// What the kernel knows of the page that a value leads to.
    pub(crate) fn head_of(&self, value: usize) -> Option<&'static PageHead> {
        self.page_of(value).map(|page| &self.heads[page])
    }

    /// An entry's page is taken away from all who map it, to be reclaimed; it stays if somebody cannot drop it.
    #[track_caller]
    pub(crate) fn try_to_unmap(&self, entry: usize) {
        let value = self.entries[entry].load(Acquire);
        let Some(head) = self.head_of(value) else { return };
        head.lock.lock();
        if frame(self.entries[entry].load(Relaxed)) == head.frame() {
            self.clear(entry, false);
            if world().rmap.try_to_unmap(LabNotifier, head).is_err() {
                self.entries[entry].store(value, Relaxed);
                self.hand[this_task()].poke(0);
            }
        }
        head.lock.unlock();
    }

    /// An entry is write-protected, and whoever else maps its page writes to it no more.
    #[track_caller]
    pub(crate) fn page_mkclean(&self, entry: usize) {
        let Some(head) = self.head_of(self.entries[entry].load(Acquire)) else { return };
        head.lock.lock();
        self.change(entry, |value| value & !WRITABLE);
        world().rmap.page_mkclean(LabNotifier, head);
        head.lock.unlock();
    }

    /// Whoever maps the page in the task's hand drops it.
    #[track_caller]
    pub(crate) fn evict(&self) {
        let Some(page) = self.hand[this_task()].peek().checked_sub(1) else { return };
        let head = &self.heads[page];
        head.lock.lock();
        world().rmap.page_mkclean(LabNotifier, head);
        head.lock.unlock();
    }

    /// Nobody finds the table any more, who does not know where it is.
    pub(crate) fn unlink_table(&self) {
        self.linked.store(0, Relaxed);
    }

    /// The table's page is freed, and nobody knows where it is then.
    #[track_caller]
    pub(crate) fn free_table(&self) {
        if world().devices.iter().any(|device| device.knows_table()) {
            Invariant::I15.broken(self.table.as_ptr());
        }
        Machine::with(|machine| machine.free(self.table, Location::caller()));
    }

    /// A device walks the table, from above or from what it knows of it: `knows` is the word in which it keeps that. Part of a step.
    pub(crate) fn walk(&self, machine: &Machine, entry: usize, knows: &SimWord<usize>) -> usize {
        if machine.look(knows) == 0 {
            machine.put(knows, machine.look(self.linked));
        }
        if machine.look(knows) == 0 {
            return 0;
        }
        if !machine.is_live(self.table.as_ptr()) {
            let name = machine.name_of_ptr(self.table.as_ptr());
            machine.fail(Kind::HardwareReaches, format!("a device walks {name}, which is freed"));
        }
        machine.look(&self.entries[entry])
    }

    /// The page in the task's hand is copied.
    #[track_caller]
    pub(crate) fn copy(&self, to: usize) {
        let Some(from) = self.hand[this_task()].peek().checked_sub(1) else { return };
        let written = self.page(from).load(Relaxed);
        self.page(to).store(written, Relaxed);
        if self.dirty[from].load(Relaxed) != 0 {
            self.dirty[to].store(1, Relaxed);
        }
    }

    /// The page that this leads to was written by somebody, who says so (Linux `set_page_dirty`). Part of a step.
    pub(crate) fn set_page_dirty(&self, machine: &Machine, value: usize) {
        if let Some(page) = self.page_of(value) {
            machine.put(&self.dirty[page], 1);
        }
    }

    /// The page in the task's hand goes to the swap, as an entry's: it is written if it is dirty, and freed. A page that nobody is known to have written is
    /// there as it was.
    #[track_caller]
    pub(crate) fn page_out(&self, entry: usize) {
        let Some(page) = self.hand[this_task()].peek().checked_sub(1) else { return };
        if self.dirty[page].load(Acquire) != 0 {
            let written = self.page(page).load(Relaxed);
            self.saved[entry].store(written | PAGED_OUT, Relaxed);
        } else {
            self.saved[entry].fetch_or(PAGED_OUT, Relaxed);
        }
        self.free_hand();
    }

    /// The task lets go of the page in its hand.
    #[track_caller]
    pub(crate) fn free_hand(&self) {
        let hand = &self.hand[this_task()];
        if let Some(page) = hand.peek().checked_sub(1) {
            hand.poke(0);
            self.put_page(page);
        }
    }

    /// One reference less; the last one frees the page, and nobody translates to it then.
    #[track_caller]
    pub(crate) fn put_page(&self, page: usize) {
        if self.refs[page].fetch_sub(1, AcqRel) != 1 {
            return;
        }
        let world = world();
        let about = self.pages[page].as_ptr();
        if world.devices.iter().any(|device| device.leads_to(self.frame_of(page))) {
            Invariant::I1.broken(about);
        }
        Machine::with(|machine| machine.free(self.pages[page], Location::caller()));
    }

    /// One more reference, of whoever has found the page mapped; none if it is gone (Linux `try_get_page`).
    pub(crate) fn get_page(&self, page: usize) -> bool {
        let refs = &self.refs[page];
        let mut seen = refs.load(Relaxed);
        while seen != 0 {
            match refs.compare_exchange(seen, seen + 1, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// A CPU uses an entry: one step, as an instruction is.
    #[track_caller]
    pub(crate) fn access(&self, entry: usize, writes: bool) {
        let at = Location::caller();
        Machine::with(|machine| {
            machine.agent_step(|| {
                let value = machine.look(&self.entries[entry]);
                if value == 0 || (writes && value & WRITABLE == 0) {
                    machine.fail(Kind::Assertion, "a CPU's access faults");
                    return;
                }
                self.use_page(machine, value, at);
                if writes {
                    self.is_written(machine, value, User::Task(this_task()));
                    self.is_to_be_found(machine, entry, value, User::Task(this_task()));
                }
            });
        });
    }

    /// Somebody uses the page that an entry, or a translation, leads to. Part of a step.
    pub(crate) fn use_page(&self, machine: &Machine, value: usize, at: &'static Location<'static>) {
        let page = self.page_of(value).expect("a translation leads to a page");
        let pointer = self.pages[page].as_ptr();
        machine.look(self.page(page));
        if !machine.is_live(pointer) {
            let name = machine.name_of_ptr(pointer);
            machine.report_rule("use-after-free", "Access to page", pointer, at);
            machine.fail(Kind::Dereferences, format!("{name} is used, and was freed"));
        }
    }

    /// The bit of who writes.
    fn bit(&self, user: User) -> usize {
        match user {
            User::Task(task) => 1 << task,
            User::Device(device) => 1 << (self.tasks + device),
        }
    }

    /// What somebody wrote is in the page that a translation leads to. Part of a step.
    pub(crate) fn is_written(&self, machine: &Machine, value: usize, user: User) {
        let page = self.page_of(value).expect("a translation leads to a page");
        self.checks_written(machine, page);
        let word = self.page(page);
        machine.put(word, machine.look(word) | self.bit(user));
        // A CPU says it in the entry, and who clears that says it of the page.
        if matches!(user, User::Task(_)) {
            self.set_page_dirty(machine, value);
        }
    }

    /// The same, when all scripts are over.
    pub(crate) fn is_written_at_end(&self, machine: &Machine, value: usize, user: User) {
        let page = self.page_of(value).expect("a translation leads to a page");
        self.checks_written(machine, page);
        self.page(page).poke(self.page(page).peek() | self.bit(user));
    }

    /// Nothing is written into a page that is freed: not by a cache, either.
    fn checks_written(&self, machine: &Machine, page: usize) {
        let pointer = self.pages[page].as_ptr();
        if !machine.is_live(pointer) {
            let name = machine.name_of_ptr(pointer);
            machine.fail(Kind::Dereferences, format!("a cache is written back to {name}, which is freed"));
        }
    }

    /// Somebody wrote by what was an entry's value, and will look for it there. Part of a step.
    pub(crate) fn is_to_be_found(&self, machine: &Machine, entry: usize, value: usize, user: User) {
        let is_gone = frame(machine.look(&self.entries[entry])) != frame(value);
        let is_thrown_away = machine.look(&self.thrown_away[entry]) == frame(value);
        if is_gone && is_thrown_away && self.is_invalidated(machine, entry) {
            return;
        }
        machine.put(&self.wrote[entry], machine.look(&self.wrote[entry]) | self.bit(user));
    }

    /// What must be so when all scripts are over.
    pub(crate) fn check_end(&self, machine: &Machine, program: &Program) {
        for (entry, name) in program.ptes.iter().enumerate() {
            let written = match self.page_of(self.entries[entry].peek()) {
                Some(page) => self.page(page).peek(),
                None if self.saved[entry].peek() != 0 => self.saved[entry].peek(),
                None => continue,
            };
            if self.wrote[entry].peek() & !written != 0 {
                machine.fail(Kind::Assertion, format!("what was written through {name} is gone"));
            }
            if self.invalidated[entry].peek() != 0 {
                Invariant::I4.fails(machine);
            }
        }
    }

    /// What each entry maps, in words.
    pub(crate) fn facts(&self, machine: &Machine, program: &Program) -> Vec<String> {
        let name_of = |value: usize| self.name_of(machine, program, value);
        let line = |(entry, name): (usize, &String)| format!("{name} maps {}", name_of(self.entries[entry].peek()));
        program.ptes.iter().enumerate().map(line).collect()
    }

    /// The page of an entry's or a translation's value, in words.
    pub(crate) fn name_of(&self, machine: &Machine, program: &Program, value: usize) -> String {
        let Some(page) = self.page_of(value) else { return "nothing".to_owned() };
        let freed = if machine.is_live(self.pages[page].as_ptr()) { "" } else { ", which is freed" };
        let read_only = if value & WRITABLE == 0 { " read-only" } else { "" };
        format!("{}{read_only}{freed}", program.pages[page])
    }
}
