//! [`HazardConvert`]: a slot while the mm lives, a counted reference once it dies.
//!
//! Andy Lutomirski's "sched: Use lightweight hazard pointers to grab lazy mms" (RFC June 2021, patch 16/23 of "mm,
//! sched: Rework lazy mm handling", 8 January 2022; not merged). Each CPU has two words:
//!
//! * `lazy_mm`, the hazard pointer, written by its CPU alone: the mm it borrows;
//! * `drop_mm`, written by reclaimers: an mm of which this CPU must drop a reference once it borrows it no longer.
//!
//! When the last user of an mm goes, [`mm_users_zero`](LazyTlb::mm_users_zero) looks at every CPU's `lazy_mm`. For each
//! that borrows the mm it puts a reference into that CPU's `drop_mm`. From then on the mm is counted as it would be
//! under reference counting; until then borrowing cost two plain stores.
//!
//! Publishing is a plain store, for a reason that [`slot`](crate::slot) gives.
//!
//! # Three traps
//!
//! 1. *Count first, then tell* (pair L3). The reference must be in `count` before `drop_mm` names the mm: the target
//!    may drop it at once. So the count grows first, and the exchange that publishes `drop_mm` is a release.
//! 2. *Look after taking* (pair L4). What was in `drop_mm` before is the reclaimer's to drop only if the CPU is done with
//!    it, and that is told from `lazy_mm` as it is read *after* `drop_mm`: the CPU may have gone on to the older mm,
//!    borrowed it, and had `drop_mm` set, all since an earlier read.
//! 3. *Own it before you judge it.* The scheme as it was posted reads `drop_mm`, looks at `lazy_mm`, finds that the CPU is
//!    done with the older mm, and then compares and exchanges. In between the CPU may drop the older mm itself, its memory
//!    may become a new mm, and the CPU may borrow that and be given a reference to it: the exchange finds the address it
//!    expects, and the reclaimer drops the reference of an mm that is borrowed. Here the exchange comes first and is
//!    unconditional. What it returns is a reference that the reclaimer owns, so that mm cannot be freed, its address
//!    cannot be used again, and nobody can begin to borrow it, because it has no users. If the CPU turns out to borrow
//!    it, it is given back in the same way. That ends: only the reference that the CPU needs ever goes back, and each mm
//!    dies once.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::null_mut;

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::lazy_tlb::{Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Platform, Warning};

use crate::slot::LazySlot;

/// The exchange that leaves a reference with a CPU and takes the older one. Full barrier: after the count has grown (pair
/// L3 with [`TAKE`]), before the slot is looked at (pair L4), and in that order against a CPU that goes offline (pair with
/// [`OFFLINE`](lazytlb_core::teardown::OFFLINE)).
pub const GIVE: Label = Label::new("hazard.give");
/// The exchange with which a CPU takes what was left with it. Acquire.
pub const TAKE: Label = Label::new("hazard.take");
/// The exchange that takes a reference back from a CPU that had stopped borrowing. Acquire.
pub const TAKE_BACK: Label = Label::new("hazard.take_back");
/// A CPU's two words.
///
/// Both on one cache line: the reclaimer that reads one goes on to the other, and the owner reads both in its tail.
#[repr(align(16))]
pub struct HazardSlot<P: Platform> {
    lazy: LazySlot<P>,
    drop_mm: P::AtomicPtr<MmCore<P>>,
}

impl<P: Platform> HazardSlot<P> {
    /// An empty slot from ready words, both null; `const`, for statics.
    pub const fn from_parts(lazy_mm: P::AtomicPtr<MmCore<P>>, drop_mm: P::AtomicPtr<MmCore<P>>) -> Self {
        HazardSlot { lazy: LazySlot::from_parts(lazy_mm), drop_mm }
    }

    /// Leaves a reference to `mm` with this CPU, counted already, and takes the older one that was there; null if none was.
    pub fn give(&self, mm: *mut MmCore<P>) -> *mut MmCore<P> {
        self.drop_mm.swap_full(mm, GIVE)
    }

    /// Takes the reference to `mm` back, if it is still there.
    fn take_back(&self, mm: *mut MmCore<P>) -> bool {
        self.drop_mm.compare_exchange(mm, null_mut(), Acquire.at(TAKE_BACK), Relaxed).is_ok()
    }

    /// As [`give`](Self::give), if just `older` is there.
    pub fn give_in_place_of(&self, older: *mut MmCore<P>, mm: *mut MmCore<P>) -> bool {
        self.drop_mm.compare_exchange_full(older, mm, GIVE).is_ok()
    }

    /// What this CPU publishes.
    pub fn lazy(&self) -> &LazySlot<P> {
        &self.lazy
    }

    /// What was left with this CPU to drop. Orders nothing; for those who watch the machine from outside.
    pub fn drop_mm(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.drop_mm.load(Relaxed))
    }
}

impl<P: Platform> Slot for HazardSlot<P> {
    fn new() -> Self {
        HazardSlot { lazy: Slot::new(), drop_mm: AtomicWord::new(null_mut()) }
    }

    fn reinit(&self) {
        self.lazy.reinit();
        self.drop_mm.store(null_mut(), Relaxed);
    }
}

impl<P: Platform> fmt::Debug for HazardSlot<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HazardSlot").field("lazy", &self.lazy).field("drop_mm", &self.drop_mm()).finish()
    }
}

/// The steps of the scheme, each with its one right body. A test overrides one of them to see it caught.
pub trait ConvertSteps<P: Platform>: 'static {
    /// The borrow of `mm` is published.
    #[inline]
    fn publish(slot: &HazardSlot<P>, mm: *mut MmCore<P>) {
        slot.lazy.publish(mm);
    }

    /// The borrow is taken back.
    #[inline]
    fn unpublish(slot: &HazardSlot<P>) {
        slot.lazy.unpublish();
    }

    /// The references that the scan may hand out are added to the count, before any is handed out.
    fn raise_count(mm: &MmCore<P>, references: usize) {
        // SAFETY: each is handed out, to be dropped by who takes it, or taken back by `lower_count`.
        unsafe { mm.count_add(references) };
    }

    /// What was not handed out is taken from the count again.
    fn lower_count(mm: &MmCore<P>, references: usize) {
        // SAFETY: they were added by `raise_count` and not handed out; the users' reference is still there.
        unsafe { mm.count_sub(references) };
    }

    /// Whether the CPU does not borrow `mm`, asked after its `drop_mm` was exchanged; `seen` is what the scan read before.
    fn is_done_with(slot: &HazardSlot<P>, mm: *mut MmCore<P>, seen: *mut MmCore<P>) -> bool {
        let _ = seen;
        slot.lazy.scan() != mm
    }

    /// Leaves a counted reference to `mm` with the CPU of `slot`, which the scan has seen borrowing it. What turns out to be
    /// nobody's is given to `drop`.
    fn give(slot: &HazardSlot<P>, mm: &MmCore<P>, mut drop: impl FnMut(CountRef<P>)) {
        let mut in_hand = MmPtr::from(mm);
        let seen = in_hand.as_ptr();
        loop {
            let older = MmPtr::new(slot.give(in_hand.as_ptr()));
            // The CPU may have left the mm and run its last tail, if it goes offline.
            if Self::is_done_with(slot, in_hand.as_ptr(), seen) && slot.take_back(in_hand.as_ptr()) {
                // SAFETY: it is the reference that was left, and nobody else has taken it.
                drop(unsafe { CountRef::new(in_hand) });
            }
            let Some(older) = older else { return };
            if Self::is_done_with(slot, older.as_ptr(), seen) {
                // SAFETY: it was counted for whoever takes it out of drop_mm, which was us, and the CPU is done with it.
                return drop(unsafe { CountRef::new(older) });
            }
            in_hand = older;
        }
    }
}

/// The scheme as it is meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Published;

impl<P: Platform> ConvertSteps<P> for Published {}

/// Lutomirski's strategy, over [`ConvertSteps`].
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one plain store to the CPU's own line |
/// | kernel thread to kernel thread | one load of the CPU's own line |
/// | kernel thread to user | a full barrier for membarrier, one release store, one load |
/// | last user | one load of each CPU's line; two RMWs, and one exchange for each borrower, if there are any |
/// | freeing | as under reference counting; never an interrupt |
///
/// *Cannot:* free promptly (the root and the struct stay until each borrower switches, as under reference counting);
/// avoid the scan. A CPU is never left with more than one reference to drop, and one that goes offline with none.
pub struct Convert<Steps>(PhantomData<fn() -> Steps>);

/// [`Convert`] with the steps as they are meant: the strategy to use.
pub type HazardConvert = Convert<Published>;

impl<Steps> Convert<Steps> {
    /// The strategy; it has no state of its own.
    pub const fn new() -> Self {
        Convert(PhantomData)
    }
}

impl<Steps> Default for Convert<Steps> {
    fn default() -> Self {
        Convert::new()
    }
}

impl<Steps> Clone for Convert<Steps> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Steps> Copy for Convert<Steps> {}

impl<Steps> fmt::Debug for Convert<Steps> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HazardConvert")
    }
}

impl<P: Platform, Steps: ConvertSteps<P>> LazyTlb<P> for Convert<Steps> {
    type CpuState = HazardSlot<P>;
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "hazard-convert"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &HazardSlot<P>, _shared: &(), mm: &MmCore<P>) {
        if P::DEBUG_VM && this.lazy.lazy_mm().is_some() {
            platform.warn(Warning::SlotBusy);
        }
        Steps::publish(this, MmPtr::from(mm).as_ptr());
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &HazardSlot<P>) {
        Steps::unpublish(this);
    }

    #[inline]
    fn switch_tail(&self, _platform: P, this: &HazardSlot<P>) -> Option<CountRef<P>> {
        let mut left = MmPtr::new(this.drop_mm.load(Relaxed))?;
        // While the borrow lasts, the reference that stands for it stays.
        while Some(left) != this.lazy.lazy_mm() {
            match this.drop_mm.compare_exchange(left.as_ptr(), null_mut(), Acquire.at(TAKE), Relaxed) {
                // SAFETY: the reclaimer counted a reference for whoever takes it out of drop_mm, and that is us.
                Ok(_) => return Some(unsafe { CountRef::new(left) }),
                Err(now) => left = MmPtr::new(now)?,
            }
        }
        None
    }

    fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        let platform = host.platform();
        let cpus = platform.nr_cpu_ids();
        // References in hand: one RMW takes enough for all, one gives back what is left.
        let mut in_hand = 0;
        let mm_ptr = MmPtr::from(mm).as_ptr();
        for cpu in 0..cpus {
            let slot = host.cpu_state(CpuId::new(cpu));
            if !platform.outcome_of(|| slot.lazy.scan() == mm_ptr) {
                continue;
            }
            if in_hand == 0 {
                in_hand = cpus - cpu;
                Steps::raise_count(mm, in_hand);
            }
            in_hand -= 1;
            Steps::give(slot, mm, |reference| host.mmdrop(reference));
        }
        if in_hand > 0 {
            Steps::lower_count(mm, in_hand);
        }
    }
}

// SAFETY: while a CPU publishes an mm, the mm has a user, or a reference in that CPU's drop_mm or in the hand of a
// reclaimer. The CPU's own tail takes it from drop_mm only once the slot no longer names the mm; a reclaimer that takes it
// drops it only if it sees that the slot does not, and gives it back otherwise.
unsafe impl<P: Platform> KeepsMmAlive<P> for HazardConvert {}
