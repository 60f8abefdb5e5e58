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
//! # Two traps
//!
//! 1. *Count first, then tell* (pair L3). The reference must be in `count` before `drop_mm` names the mm: the target
//!    may drop it at once. So the count grows first, and the exchange that publishes `drop_mm` is a release.
//! 2. *Look again* (pair L4). A CPU whose `drop_mm` is taken by an older mm, but whose `lazy_mm` is ours, is provably
//!    done with the older one, whose reference may be dropped on its behalf. That holds only if `lazy_mm` was read
//!    *after* `drop_mm`: the CPU may have gone on to the older mm, borrowed it, and had `drop_mm` set, all since an
//!    earlier read.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::null_mut;

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::lazy_tlb::{Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Platform, Warning};

use crate::slot::LazySlot;

/// The reclaimer's look at `drop_mm`, before it looks at the slot again. Acquire (pair L4).
pub const LOAD_DROP: Label = Label::new("hazard.load_drop");
/// The exchange that leaves a reference with a CPU. Release, after the count has grown (pair L3 with [`TAKE`]);
/// acquire, because it may take over an older reference.
pub const GIVE: Label = Label::new("hazard.give");
/// The exchange with which a CPU takes what was left with it. Acquire.
pub const TAKE: Label = Label::new("hazard.take");
/// The barrier that membarrier needs when a borrow ends; reference counting gives it by accident (pair L9).
pub const MEMBARRIER: Label = Label::new("hazard.membarrier");

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

    /// The exchange with which a reference is left with this CPU: counted already, and with `older` taken over.
    pub fn give(&self, older: *mut MmCore<P>, mm: &MmCore<P>) -> bool {
        self.drop_mm.compare_exchange(older, MmPtr::from(mm).as_ptr(), AcqRel.at(GIVE), Relaxed).is_ok()
    }

    /// What this CPU publishes.
    pub fn lazy(&self) -> &LazySlot<P> {
        &self.lazy
    }

    /// What was left with this CPU to drop, for those who watch the machine from outside.
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
        mm.count_add(references);
    }

    /// A reference is left with a CPU, in the place of an `older` one. Says whether the CPU's word was as it was.
    fn hand_out(slot: &HazardSlot<P>, older: *mut MmCore<P>, mm: &MmCore<P>) -> bool {
        slot.give(older, mm)
    }

    /// What was not handed out is taken from the count again.
    fn lower_count(mm: &MmCore<P>, references: usize) {
        mm.count_sub(references);
    }

    /// Whether the CPU still borrows `mm`, asked after its `drop_mm` was read; `seen` is what the scan read before.
    fn borrows_still(slot: &HazardSlot<P>, mm: *mut MmCore<P>, seen: *mut MmCore<P>) -> bool {
        let _ = seen;
        slot.lazy.scan() == mm
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
/// avoid the scan. A CPU is never left with more than one reference to drop.
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

    fn name(&self) -> &'static str {
        "hazard-convert"
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &HazardSlot<P>, mm: &MmCore<P>) {
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
    fn mmdrop_lazy_tlb(&self, platform: P, _mm: MmPtr<P>) -> Option<CountRef<P>> {
        platform.fence(SeqCst.at(MEMBARRIER));
        None
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
        let cpus = host.platform().nr_cpu_ids();
        // References in hand: one RMW takes enough for all, one gives back what is left.
        let mut in_hand = 0;
        let mm_ptr = MmPtr::from(mm).as_ptr();
        for cpu in 0..cpus {
            let slot = host.cpu_state(CpuId::new(cpu));
            let seen = slot.lazy.scan();
            if seen != mm_ptr {
                continue;
            }
            if in_hand == 0 {
                in_hand = cpus - cpu;
                Steps::raise_count(mm, in_hand);
            }
            match give::<P, Steps>(slot, mm, seen) {
                Given::Nothing => {}
                Given::To(older) => {
                    in_hand -= 1;
                    if let Some(older) = older {
                        host.mmdrop(older);
                    }
                }
            }
        }
        if in_hand > 0 {
            Steps::lower_count(mm, in_hand);
        }
    }
}

/// How an attempt to leave a reference with a CPU ended.
enum Given<P: Platform> {
    /// The CPU had stopped borrowing by itself.
    Nothing,
    /// It has the reference; the older one that it was done with is ours to drop.
    To(Option<CountRef<P>>),
}

/// Leaves a reference to `mm` with the CPU of `slot`, which was seen borrowing it.
fn give<P: Platform, Steps: ConvertSteps<P>>(slot: &HazardSlot<P>, mm: &MmCore<P>, seen: *mut MmCore<P>) -> Given<P> {
    let mm_ptr = MmPtr::from(mm).as_ptr();
    loop {
        let older = slot.drop_mm.load(Acquire.at(LOAD_DROP));
        if !older.is_null() && !Steps::borrows_still(slot, mm_ptr, seen) {
            return Given::Nothing;
        }
        if Steps::hand_out(slot, older, mm) {
            // SAFETY: the CPU borrows `mm` and so is done with `older`, and the exchange took over its reference.
            return Given::To(MmPtr::new(older).map(|older| unsafe { CountRef::new(older) }));
        }
    }
}

// SAFETY: while a CPU publishes an mm, the mm has a user or a reference in that CPU's drop_mm, which only its own tail
// takes, and only once the slot no longer names the mm.
unsafe impl<P: Platform> KeepsMmAlive<P> for HazardConvert {}
