//! s390: a cache of one table's entries.
//!
//! Source: the series v6 of 15 July 2026 (cover.1784121418), whose merge is not confirmed.
//!
//! To change a valid entry takes an instruction (IPTE) that may stop the whole machine for a moment. It can invalidate up to 256
//! entries in a row, so a section that says which entries it will change collects them.

use core::fmt;
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{Ordering, compiler_fence};

use lazytlb_core::memory::{LocalWord, Memory};

use super::{MmuKernel, Pte, PteAccess, kernels_part};
use crate::arch::{LazyMmuArch, Warning};
use crate::levels::ArchLevels;

/// A CPU's cache of up to `N` entries, those of one table. Linux has 256.
///
/// Context: preemption off, of the CPU that owns it.
pub struct PteCache<K: S390Kernel<N>, const N: usize> {
    /// How many sections are open on this CPU: one or none.
    sections: K::LocalUsize,
    mm: K::LocalUsize,
    addr: K::LocalUsize,
    end: K::LocalUsize,
    /// Null where no entries were named.
    ptep: K::LocalPtr<K::AtomicUsize>,
    /// The slots that may be in use: from this one...
    first: K::LocalUsize,
    /// ...to the one before this.
    behind: K::LocalUsize,
    slots: [K::LocalUsize; N],
}

impl<K: S390Kernel<N>, const N: usize> Default for PteCache<K, N> {
    fn default() -> Self {
        let word = || LocalWord::new(0);
        PteCache {
            sections: word(),
            mm: word(),
            addr: word(),
            end: word(),
            ptep: LocalWord::new(null_mut()),
            first: word(),
            behind: word(),
            slots: core::array::from_fn(|_| LocalWord::new(K::PTE_NEVER)),
        }
    }
}

impl<K: S390Kernel<N>, const N: usize> fmt::Debug for PteCache<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = self.first.get()..self.behind.get();
        write!(f, "{} sections, slots {window:?}", self.sections.get())
    }
}

impl<K: S390Kernel<N>, const N: usize> PteCache<K, N> {
    /// A cache of these words; `const`, for statics.
    ///
    /// # Safety
    /// They are zero and null at the start, but for the slots, each of which holds [`PTE_NEVER`](S390Kernel::PTE_NEVER): the end of a section stores
    /// through the pointer.
    #[expect(clippy::too_many_arguments, reason = "what a const fn is given it cannot take apart")]
    pub const unsafe fn from_parts(
        sections: K::LocalUsize,
        mm: K::LocalUsize,
        addr: K::LocalUsize,
        end: K::LocalUsize,
        ptep: K::LocalPtr<K::AtomicUsize>,
        first: K::LocalUsize,
        behind: K::LocalUsize,
        slots: [K::LocalUsize; N],
    ) -> Self {
        PteCache { sections, mm, addr, end, ptep, first, behind, slots }
    }

    /// The addresses that the section has named, if it has named any.
    pub fn addrs(&self) -> Option<Range<usize>> {
        Some(self.ptes()?.addrs())
    }

    fn ptes(&self) -> Option<PteRange<K>> {
        let ptep = NonNull::new(self.ptep.get())?;
        let addrs = self.addr.get()..self.end.get();
        // SAFETY: of these words a range was made before, and its entries are there until the section ends.
        Some(unsafe { PteRange::new(self.mm.get(), addrs, ptep) })
    }

    /// Whether nothing waits to be stored.
    pub fn is_empty(&self) -> bool {
        self.first.get() == self.behind.get()
    }

    /// The slot of an entry, if it is one of those that were named.
    fn slot(&self, ptep: NonNull<K::AtomicUsize>) -> Option<usize> {
        let named = self.ptes()?;
        let offset = ptep.addr().get().checked_sub(named.ptep.addr().get())?;
        let slot = offset / size_of::<K::AtomicUsize>();
        (slot < named.len::<N>()).then_some(slot)
    }

    fn cached(&self, slot: usize) -> Option<usize> {
        Some(self.slots[slot].get()).filter(|&value| value != K::PTE_NEVER)
    }

    fn put(&self, slot: usize, value: usize) {
        self.slots[slot].set(value);
        let (first, behind) = (self.first.get(), self.behind.get());
        if first == behind {
            self.first.set(slot);
            self.behind.set(slot + 1);
        } else {
            self.first.set(first.min(slot));
            self.behind.set(behind.max(slot + 1));
        }
    }

    /// Names entries, or none. The pointer comes last, and goes first: an interrupt finds either no entries named, or all that is said
    /// of them.
    fn name(&self, ptes: Option<PteRange<K>>) {
        self.ptep.set(null_mut());
        compiler_fence(Ordering::SeqCst);
        if let Some(ptes) = ptes {
            self.mm.set(ptes.mm);
            self.addr.set(ptes.addr);
            self.end.set(ptes.end);
            compiler_fence(Ordering::SeqCst);
            self.ptep.set(ptes.ptep.as_ptr());
        }
    }
}

/// Entries of one mm, all in one table: what a section says that it will change.
pub struct PteRange<M: Memory> {
    mm: usize,
    addr: usize,
    end: usize,
    ptep: NonNull<M::AtomicUsize>,
}

impl<M: Memory> PteRange<M> {
    /// The entries that map these addresses of an mm ([`Pte::mm`]), the first of which is this. An empty range names none.
    ///
    /// # Safety
    /// They are there, one behind the other in one table, as long as this value or a copy of it can be given to a section, a
    /// [`Level`](crate::levels::Level) or a pause remembers it, or a section is open that it was given to. The end of the section stores through
    /// this pointer, and invalidates these addresses.
    pub unsafe fn new(mm: usize, addrs: Range<usize>, ptep: NonNull<M::AtomicUsize>) -> Self {
        PteRange { mm, addr: addrs.start, end: addrs.end, ptep }
    }

    /// The addresses that they map.
    pub fn addrs(&self) -> Range<usize> {
        self.addr..self.end
    }
}

impl<M: Memory> Clone for PteRange<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Memory> Copy for PteRange<M> {}

impl<M: Memory> fmt::Debug for PteRange<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mm {}, addresses {:#x?}", self.mm, self.addr..self.end)
    }
}

impl<K: MmuKernel> PteRange<K> {
    /// How many entries of it a cache of `N` takes.
    fn len<const N: usize>(&self) -> usize
    where
        K: S390Kernel<N>,
    {
        (self.addrs().len() / K::PAGE_SIZE).min(N)
    }
}

/// What a section has named, as a level remembers it. No hint: nothing else takes it.
#[derive(Debug)]
pub struct Named<M: Memory>(Option<PteRange<M>>);

/// What such a machine has beside the common.
pub trait S390Kernel<const N: usize>: MmuKernel {
    /// How much an entry maps.
    const PAGE_SIZE: usize = 4096;

    /// A value that no entry has.
    const PTE_NEVER: usize;

    /// This CPU's cache. Context: preemption off.
    fn pte_cache(&self) -> &PteCache<Self, N>;

    /// Makes `count` entries invalid, the first of which is this, and takes them out of all TLBs (IPTE; the local form where the mm
    /// has run on this CPU only).
    ///
    /// # Safety
    /// The entries are there.
    unsafe fn ipte_range(self, first: Pte<Self>, count: usize);
}

/// Caches what is stored into the entries that a section has named; its end invalidates and stores them in rows.
///
/// Preemption is off from enter to leave. Entries that were not named are changed at once, one instruction each. A pause forgets what was named;
/// [`lazy_mmu_mode_pause_level`](crate::LazyMmuState::lazy_mmu_mode_pause_level) does not. Between the invalidation and the store entries
/// are invalid, and who faults waits for the lock of the table.
///
/// *What breaks:* reading a named entry past the accessors; and an interrupt that changes one, for whether a section is open is
/// asked of the CPU and not of the interrupt.
#[derive(Clone, Copy, Debug)]
pub struct S390<K, const N: usize>(pub K);

impl<K: S390Kernel<N>, const N: usize> S390<K, N> {
    /// The cache and the slot of an entry that is to go through it. Who is in a section keeps the CPU, and so the cache; who is in none
    /// keeps it while it is looked at. (Linux asks a word at a fixed address, the CPU's own, by one instruction.)
    fn slot(&self, pte: Pte<K>) -> Option<(&PteCache<K, N>, usize)> {
        self.0.preempt_disable();
        let cache = self.0.pte_cache();
        let slot = if cache.sections.get() == 0 { None } else { cache.slot(pte.ptep) };
        self.0.preempt_enable();
        Some((cache, slot?))
    }

    fn enter(&self, ptes: Option<PteRange<K>>) {
        self.0.preempt_disable();
        let cache = self.0.pte_cache();
        // Where a section is open already (a count that has overflowed, a second task's state) what it has cached is of what it has named.
        self.write_back(cache);
        cache.sections.set(cache.sections.get().wrapping_add(1));
        cache.name(ptes);
    }

    /// Stores all that is cached, in rows of entries that are valid now, or are not.
    fn write_back(&self, cache: &PteCache<K, N>) {
        let Some(named) = cache.ptes() else { return };
        let pte = |slot: usize| Pte::<K> {
            mm: named.mm,
            addr: named.addr + slot * K::PAGE_SIZE,
            // SAFETY: inside of the entries that were named, which are there.
            ptep: unsafe { named.ptep.add(slot) },
        };
        // SAFETY: who has changed the entry has promised that it stays until the change is in force.
        let is_valid = |slot: usize| K::pte_present(unsafe { pte(slot).load() });
        let behind = cache.behind.get();
        let mut slot = cache.first.get();
        while slot < behind {
            if cache.cached(slot).is_none() {
                slot += 1;
                continue;
            }
            let valid = is_valid(slot);
            let in_row = |&next: &usize| cache.cached(next).is_some() && is_valid(next) == valid;
            let row = slot..slot + (slot..behind).take_while(in_row).count();
            if valid {
                // SAFETY: as above.
                unsafe { self.0.ipte_range(pte(slot), row.len()) };
            }
            for slot in row.clone() {
                // SAFETY: as above.
                unsafe { pte(slot).store(cache.slots[slot].get()) };
                cache.slots[slot].set(K::PTE_NEVER);
            }
            slot = row.end;
        }
        cache.first.set(0);
        cache.behind.set(0);
    }
}

impl<K: S390Kernel<N>, const N: usize> LazyMmuArch for S390<K, N> {
    type Ptes = PteRange<K>;

    kernels_part!();

    fn arch_enter_lazy_mmu_mode(&self) {
        self.enter(None);
    }

    fn arch_enter_lazy_mmu_mode_with_ptes(&self, ptes: PteRange<K>) {
        self.enter(Some(ptes));
    }

    fn arch_leave_lazy_mmu_mode(&self) {
        let cache = self.0.pte_cache();
        self.write_back(cache);
        cache.name(None);
        cache.sections.set(cache.sections.get().wrapping_sub(1));
        self.0.preempt_enable();
    }

    fn arch_flush_lazy_mmu_mode(&self) {
        self.write_back(self.0.pte_cache());
    }
}

impl<K: S390Kernel<N>, const N: usize> ArchLevels for S390<K, N> {
    type Level = Named<K>;

    fn arch_save_lazy_mmu_mode(&self) -> Named<K> {
        Named(self.0.pte_cache().ptes())
    }

    unsafe fn arch_restore_lazy_mmu_mode(&self, level: Named<K>) {
        self.enter(level.0);
    }
}

impl<K: S390Kernel<N>, const N: usize> PteAccess for S390<K, N> {
    type Kernel = K;

    unsafe fn ptep_get(&self, pte: Pte<K>) -> usize {
        let cached = self.slot(pte).and_then(|(cache, slot)| cache.cached(slot));
        // SAFETY: the caller's promise.
        cached.unwrap_or_else(|| unsafe { pte.load() })
    }

    /// Through the cache where a section has named it, as the series has it; else without the instruction.
    unsafe fn ptep_get_and_clear_full(&self, pte: Pte<K>) -> usize {
        match self.slot(pte) {
            // SAFETY: the caller's promise.
            Some(_) => unsafe { self.ptep_get_and_clear(pte) },
            // SAFETY: as above.
            None => unsafe { pte.swap(K::PTE_NONE) },
        }
    }

    unsafe fn set_pte(&self, pte: Pte<K>, value: usize) {
        if let Some((cache, slot)) = self.slot(pte) {
            return cache.put(slot, value);
        }
        // SAFETY: the caller's promise.
        if K::pte_present(unsafe { pte.load() }) {
            // SAFETY: as above.
            unsafe { self.0.ipte_range(pte, 1) };
        }
        // SAFETY: as above.
        unsafe { pte.store(value) };
    }

    /// As a read and a store: s390's hardware writes nothing into entries, and what it knows of accesses is kept elsewhere.
    unsafe fn pte_update(&self, pte: Pte<K>, change: impl Fn(usize) -> usize) -> usize {
        // SAFETY: the caller's promise.
        let old = unsafe { self.ptep_get(pte) };
        let new = change(old);
        if new != old {
            // SAFETY: as above.
            unsafe { self.set_pte(pte, new) };
        }
        old
    }
}
