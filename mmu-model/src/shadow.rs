//! KASAN's shadow of vmalloc space: pages that neighbours share, installed and removed by callbacks that run in a section.
//!
//! A shadow page covers eight pages, so two tasks that allocate neighbours both try to install the same one, and one that frees may
//! remove it. Each looks whether the entry is there and changes it with a lock held; but if the change is deferred, the lock is
//! released before its effect. Source: 0d2efb7d...cover.1755528662 (August 2025), and the thread on v4 (November 2025), in which
//! Gordeev, Hildenbrand and Roberts discuss what cures it.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicInt, AtomicWord, LocalWord, Memory, Ordering::*};
use lazytlb_lazy_mmu::Generation;
use lazytlb_lazy_mmu::backends::PteAccess;
use lazytlb_machine::{Cache, Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};

use crate::kernel::{LabMmu, placed};
use crate::world::{Rule, broken};

/// How the callback sees to it that its change takes effect with the lock held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cure {
    /// Not at all.
    None,
    /// It pauses the section, as Linux does.
    Pause,
    /// It flushes before it unlocks.
    FlushBeforeUnlock,
    /// It opens a section of its own and ends it before it unlocks.
    NestedInside,
    /// It ends that behind the unlock: rejected on the list.
    NestedAround,
    /// The lock is held over the whole walk: rejected on the list, for what else is done there.
    LockedWalk,
}

impl Cure {
    /// All of them.
    pub const ALL: [Cure; 6] =
        [Cure::None, Cure::Pause, Cure::FlushBeforeUnlock, Cure::NestedInside, Cure::NestedAround, Cure::LockedWalk];
}

/// A page of shadow: a bit for each task that has written into it.
pub(crate) type Page = SimWord<usize>;

/// The entry that both tasks are about.
const ENTRY: usize = 0;

/// What the allocator and the tasks keep.
pub(crate) struct Shadow {
    /// `init_mm.page_table_lock`.
    lock: &'static SimWord<usize>,
    /// The page that each task has in its hand, and the one that is mapped at the start; if there is one.
    pages: [Option<NonNull<Page>>; 3],
    /// The tasks that have written into the page, a bit each; not steps.
    wrote: &'static SimLocal<usize>,
}

impl Shadow {
    /// Which tasks have a page in their hand, and whether another one is mapped at the start.
    pub(crate) fn place(machine: &Machine, entries: &[SimWord<usize>], in_hand: [bool; 2], mapped: bool) -> Shadow {
        let lock = placed(machine.place_slice("page_table_lock", ObjectKind::Other, 1, |_| AtomicWord::new(0)));
        let wrote = placed(machine.place_slice("wrote", ObjectKind::Other, 1, |_| LocalWord::new(0)));
        let cache: Cache<Page> = machine.create_cache("shadow", ObjectKind::Frame, 3, |_| AtomicWord::new(0));
        let pages = [in_hand[0], in_hand[1], mapped].map(|is| is.then(|| machine.alloc_at_setup(cache)));
        let shadow = Shadow { lock: &lock[0], pages, wrote: &wrote[0] };
        if mapped {
            entries[ENTRY].poke(shadow.value(2));
        }
        shadow
    }

    /// What the entry holds if it maps a page.
    fn value(&self, page: usize) -> usize {
        self.pages[page].expect("a page of the script").as_ptr().expose_provenance()
    }

    /// The page that an entry of this value maps.
    fn page(&self, value: usize) -> NonNull<Page> {
        *self.pages.iter().flatten().find(|page| page.as_ptr().addr() == value).expect("a page of shadow")
    }

    fn lock(&self) {
        Machine::with(Machine::preempt_disable);
        Sim.spin_until(|| self.lock.compare_exchange(0, 1, Acquire, Relaxed).ok());
    }

    fn unlock(&self) {
        self.lock.store(0, Release);
        Machine::with(Machine::preempt_enable);
    }
}

/// A walk of apply_to_page_range over the one entry, with a callback.
pub(crate) struct Walk<'a, G: Generation + 'static, B> {
    pub(crate) shadow: &'a Shadow,
    pub(crate) arch: B,
    pub(crate) state: &'a G,
    pub(crate) task: usize,
    pub(crate) cure: Cure,
}

impl<G: Generation + 'static, B: PteAccess<Kernel = LabMmu<G>> + Copy> Walk<'_, G, B> {
    /// kasan_populate_vmalloc: installs the task's page if there is none, and frees it otherwise.
    #[track_caller]
    pub(crate) fn populate(&self, named: B::Ptes) {
        let mine = self.shadow.value(self.task);
        let is_used = self.walk(named, |old| (old == 0).then_some(mine)) == 0;
        if !is_used {
            self.free(mine, Location::caller());
        }
    }

    /// kasan_release_vmalloc: removes the page if there is one, and frees it.
    #[track_caller]
    pub(crate) fn depopulate(&self, named: B::Ptes) {
        let old = self.walk(named, |old| (old != 0).then_some(0));
        if old != 0 {
            self.free(old, Location::caller());
        }
    }

    /// Writes into the shadow of the task's own area: the reason for which it was populated.
    pub(crate) fn touch(&self) {
        let entry = LabMmu::<G>::NEW.words().entries[ENTRY].load(Relaxed);
        if entry == 0 {
            return Machine::with(|machine| {
                machine.fail(Kind::Assertion, "an area has no shadow where it is accessed")
            });
        }
        // SAFETY: in the arena; whether it is allocated is what the machine checks.
        unsafe { self.shadow.page(entry).as_ref() }.fetch_or(1 << self.task, Relaxed);
        self.shadow.wrote.poke(self.shadow.wrote.peek() | 1 << self.task);
    }

    /// The callback, in its section: changes the entry as `change` says, with the lock held. Returns what it found.
    fn walk(&self, named: B::Ptes, change: impl Fn(usize) -> Option<usize>) -> usize {
        let (shadow, arch, state) = (self.shadow, &self.arch, self.state);
        if self.cure == Cure::LockedWalk {
            shadow.lock();
        }
        let section = state.enable_with_ptes(arch, named);
        let pause = (self.cure == Cure::Pause).then(|| state.pause(arch));
        let around = (self.cure == Cure::NestedAround).then(|| state.enable(arch));
        if self.cure != Cure::LockedWalk {
            shadow.lock();
        }
        let inside = (self.cure == Cure::NestedInside).then(|| state.enable(arch));
        let pte = LabMmu::<G>::NEW.pte(ENTRY);
        // SAFETY: the entry stays.
        let old = unsafe { arch.ptep_get(pte) };
        if let Some(new) = change(old) {
            // SAFETY: as above.
            unsafe { arch.set_pte(pte, new) };
        }
        if let Some(inside) = inside {
            state.disable(arch, inside);
        }
        if self.cure == Cure::FlushBeforeUnlock {
            arch.arch_flush_lazy_mmu_mode();
        }
        if self.cure != Cure::LockedWalk {
            self.check_unlock(change(old).unwrap_or(old));
            shadow.unlock();
        }
        if let Some(around) = around {
            state.disable(arch, around);
        }
        if let Some(pause) = pause {
            state.resume(arch, pause);
        }
        state.disable(arch, section);
        if self.cure == Cure::LockedWalk {
            self.check_unlock(change(old).unwrap_or(old));
            shadow.unlock();
        }
        old
    }

    /// What was done with the lock held is to be seen by others before it is released.
    fn check_unlock(&self, expected: usize) {
        if LabMmu::<G>::NEW.look_at(ENTRY) != expected {
            broken(Rule::R10);
        }
    }

    fn free(&self, value: usize, at: &'static Location<'static>) {
        if LabMmu::<G>::NEW.look_at(ENTRY) == value {
            broken(Rule::R11);
        }
        Machine::with(|machine| machine.free(self.shadow.page(value), at));
    }
}

impl Shadow {
    /// What must be so when all is over: each page that is left is mapped, and what was written through the entry is there.
    pub(crate) fn end(&self, machine: &Machine, entries: &[SimWord<usize>]) {
        let entry = entries[ENTRY].peek();
        let is_lost = |page: &NonNull<Page>| machine.is_live(page.as_ptr()) && page.as_ptr().addr() != entry;
        if self.pages.iter().flatten().any(is_lost) {
            machine.fail(Kind::Leak, "a page of shadow is lost: nothing maps it, and nobody frees it");
        }
        // SAFETY: in the arena; a freed page was found above or at the access.
        let there = if entry == 0 { 0 } else { unsafe { self.page(entry).as_ref() }.peek() };
        if self.wrote.peek() & !there != 0 {
            machine.fail(Kind::Assertion, "what a task has written through the entry is gone");
        }
    }
}
