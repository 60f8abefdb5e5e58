//! [`RefcountPerCpu`]: each CPU owns one reference, to the mm whose tables it has loaded.
//!
//! Where [`Refcount`](crate::Refcount) counts borrows, this counts *activations*: a CPU that loads an mm's tables for a user
//! takes a reference, keeps it whatever runs there next, and gives it back when it has loaded another's. A kernel thread
//! borrows what the CPU owns, so beginning a borrow, and ending it for the same user, count nothing; a switch between two users
//! does, which under [`Refcount`](crate::Refcount) is free.
//!
//! # One trap
//!
//! *Load before you release.* The former mm's reference is what keeps the tables that are still loaded. If it is dropped when the
//! next mm takes its place in the CPU's slot, and before the next root is loaded, it may be the last, and the CPU is on
//! freed tables. So the slot has a second word: what was left waits there for the tail of the switch.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::null_mut;

use lazytlb_core::lazy_tlb::{Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::LocalWord;
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Platform, Warning};

/// What a CPU owns. No other CPU reads it, and neither word is atomic.
pub struct OwnedMm<P: Platform> {
    /// The mm that it has loaded, or is about to load; null for `init_mm`. Owns a reference.
    activated: P::LocalPtr<MmCore<P>>,
    /// The one before, until the tail of the switch. Owns a reference.
    left: P::LocalPtr<MmCore<P>>,
}

impl<P: Platform> OwnedMm<P> {
    /// Of a CPU on `init_mm`, from ready words, both null; `const`, for statics.
    pub const fn from_parts(activated: P::LocalPtr<MmCore<P>>, left: P::LocalPtr<MmCore<P>>) -> Self {
        OwnedMm { activated, left }
    }

    /// How many references to `mm` the CPU owns, for those who watch the machine from outside.
    pub fn references(&self, mm: MmPtr<P>) -> usize {
        [&self.activated, &self.left].into_iter().filter(|word| word.get() == mm.as_ptr()).count()
    }
}

impl<P: Platform> Slot for OwnedMm<P> {
    fn new() -> Self {
        OwnedMm { activated: LocalWord::new(null_mut()), left: LocalWord::new(null_mut()) }
    }

    fn reinit(&self) {
        self.activated.set(null_mut());
        self.left.set(null_mut());
    }
}

impl<P: Platform> fmt::Debug for OwnedMm<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnedMm { .. }")
    }
}

/// The step that can be done too early, with its one right body. A test overrides it to see it caught.
pub trait ActivateSteps<P: Platform>: Sized + 'static {
    /// The CPU owns another mm now; `last`, a reference that was the CPU's, is to be released. Its tables are loaded still.
    #[inline]
    fn release(host: &impl Host<P, PerCpu<Self>>, this: &OwnedMm<P>, last: MmPtr<P>) {
        if P::DEBUG_VM && !this.left.get().is_null() {
            host.platform().warn(Warning::SlotBusy);
        }
        this.left.set(last.as_ptr());
    }
}

/// The scheme as it is meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadedFirst;

impl<P: Platform> ActivateSteps<P> for LoadedFirst {}

/// One reference for each CPU, over [`ActivateSteps`].
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | nothing |
/// | kernel thread to kernel thread | one load of the CPU's own word |
/// | kernel thread to the same user | a full barrier for membarrier |
/// | kernel thread to another user, user to another user | one RMW on the next mm's line, one on the last mm's, in the tail of the switch |
/// | freeing | by whoever drops last, often a CPU that merely goes on to another mm |
///
/// *Needs:* nothing.
///
/// *Cannot:* scale where CPUs go to and fro between address spaces that they share (two RMWs for each such switch, where
/// [`Refcount`](crate::Refcount) has none between users); bound how long an idle CPU pins the struct and the root; name who
/// pins them.
///
/// *Orderings:* the reference is taken relaxed, because the caller owns a user. It is dropped in the tail, after the MMU has left,
/// by the full barrier of every mmdrop ([`MMDROP`](lazytlb_core::mm::MMDROP)). A kernel thread that gives the CPU back to
/// the same user drops nothing, so membarrier's barrier is that of
/// [`MEMBARRIER`](lazytlb_core::lazy_tlb::MEMBARRIER).
///
/// Source: the protocol is that of kernels that keep an owned reference in a per-CPU word, Asterinas'
/// `VmSpace::activate` among them (ostd, `mm/vm_space.rs`), where kernel tasks do not switch either. Published versions of that
/// function release the last mm before they load the next one, which `lazytlb bugs C2` plants. NetBSD's `ci_pmap` holds
/// its pmap in the same way, as far as is known.
pub struct PerCpu<Steps>(PhantomData<fn() -> Steps>);

/// [`PerCpu`] with the step as it is meant: the strategy to use.
pub type RefcountPerCpu = PerCpu<LoadedFirst>;

impl<Steps> PerCpu<Steps> {
    /// The strategy; it has no state of its own.
    pub const fn new() -> Self {
        PerCpu(PhantomData)
    }
}

impl<Steps> Default for PerCpu<Steps> {
    fn default() -> Self {
        PerCpu::new()
    }
}

impl<Steps> Clone for PerCpu<Steps> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Steps> Copy for PerCpu<Steps> {}

impl<Steps> fmt::Debug for PerCpu<Steps> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefcountPerCpu")
    }
}

impl<P: Platform, Steps: ActivateSteps<P>> LazyTlb<P> for PerCpu<Steps> {
    type CpuState = OwnedMm<P>;
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "refcount-per-cpu"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    /// The CPU owns a reference since it loaded `mm`.
    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &OwnedMm<P>, _shared: &(), mm: &MmCore<P>) {
        if P::DEBUG_VM && this.activated.get() != MmPtr::from(mm).as_ptr() {
            platform.warn(Warning::SlotBusy);
        }
    }

    #[inline]
    fn activate_mm(&self, host: &impl Host<P, Self>, this: &OwnedMm<P>, mm: Option<&MmCore<P>>) {
        let next = mm.map_or(null_mut(), |mm| MmPtr::from(mm).as_ptr());
        let last = this.activated.get();
        // The same address is the same mm: the CPU owns a reference, so it has not been freed since.
        if last == next {
            return;
        }
        if let Some(mm) = mm {
            // SAFETY: the slot owns it, and gives it back when the CPU has loaded another mm.
            unsafe { mm.count_add(1) };
        }
        this.activated.set(next);
        if let Some(last) = MmPtr::new(last) {
            Steps::release(host, this, last);
        }
    }

    #[inline]
    fn switch_tail(&self, _platform: P, this: &OwnedMm<P>) -> Option<CountRef<P>> {
        let left = MmPtr::new(this.left.get())?;
        this.left.set(null_mut());
        // SAFETY: the word owned it, and names it no more.
        Some(unsafe { CountRef::new(left) })
    }
}

// SAFETY: the CPU takes a reference while it still owns a user of the mm, and gives it back in a tail, which comes after
// active_mm and the MMU have left.
unsafe impl<P: Platform> KeepsMmAlive<P> for RefcountPerCpu {}
