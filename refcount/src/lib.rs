//! The reference-counting family: the borrow owns a reference to the mm, or the CPU does.
//!
//! [`Refcount`] is what Linux has done since July 1999 (2.3.13) and still does on every architecture but 64-bit server
//! powerpc. It is the simplest scheme that is right, and the one whose price the others are measured against: one
//! read-modify-write of a shared cache line for each switch between a user task and a kernel thread, and one for the
//! switch back. [`RefcountPerCpu`] counts what each CPU has loaded instead.

#![cfg_attr(not(test), no_std)]

pub mod deferred;
pub mod per_cpu;

pub use deferred::RefcountDeferred;
pub use per_cpu::RefcountPerCpu;

use lazytlb_core::lazy_tlb::{KeepsMmAlive, LazyTlb};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr};
use lazytlb_core::platform::Platform;

/// One `mm_count` per borrow (Linux `MMU_LAZY_TLB_REFCOUNT`).
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one RMW on the mm's line |
/// | kernel thread to kernel thread | nothing: the reference stays with the CPU |
/// | kernel thread to user | one RMW on the mm's line, a full barrier, in the tail of the switch |
/// | freeing | by whoever drops last, often a CPU that merely went idle on the mm |
///
/// *Cannot:* scale (with many CPUs going idle on one big mm the machine is serialised on one line); bound how long an
/// idle CPU pins the struct and the root; name who pins it.
///
/// The reference is dropped after the switch and never in it: a last drop frees, and a switch holds the run queue's
/// lock. [`Switcher`](lazytlb_core::Switcher) parks it for the tail.
///
/// *Orderings:* the grab is relaxed, because the CPU still owns a user. The drop is the full barrier of every mmdrop,
/// [`MMDROP`](lazytlb_core::mm::MMDROP), which doubles as the barrier that membarrier needs; the `Arc` recipe (release
/// decrement, acquire fence before freeing) would lose that.
///
/// Source: kernel/sched/core.c `context_switch`, include/linux/sched/mm.h `mmgrab_lazy_tlb`, as of Linux 6.12; the
/// four-way switch is Zijlstra's (commit 139d025cda1d).
#[derive(Clone, Copy, Debug, Default)]
pub struct Refcount;

impl<P: Platform> LazyTlb<P> for Refcount {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "refcount"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &(), mm: &MmCore<P>) {
        // SAFETY: the borrow owns it, and gives it back when it ends.
        unsafe { mm.count_add(1) };
    }

    #[inline]
    fn mmdrop_lazy_tlb(&self, _platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        // SAFETY: the borrow took this reference in mmgrab_lazy_tlb, and ends once.
        Some(unsafe { CountRef::new(mm) })
    }
}

// SAFETY: a borrow owns a reference from before the CPU gives up its user until after the MMU and active_mm have left.
unsafe impl<P: Platform> KeepsMmAlive<P> for Refcount {}
