//! [`NoLazy`]: kernel threads run on `init_mm`. The baseline without a lifetime question, and the shortest strategy.

use crate::lazy_tlb::{KeepsMmAlive, LazyTlb};
use crate::mm::MmCore;
use crate::platform::Platform;

/// Never borrow: leaving a user task loads `init_mm`, coming back loads the user's tables again.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | an MMU switch |
/// | kernel thread to user | an MMU switch, and a TLB flush where the hardware has no tags |
/// | freeing | nothing |
///
/// Nicholas Piggin's tree had it as `MMU_LAZY_TLB=n` (July 2020); x86 ran a form of it around Linux 4.15. Kernels
/// without lazy TLB do the same: seL4, Redox, maestro, ArceOS.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLazy;

impl<P: Platform> LazyTlb<P> for NoLazy {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "no-lazy"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn borrows(&self) -> bool {
        false
    }

    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &(), _mm: &MmCore<P>) {}
}

// SAFETY: the active_mm of a kernel thread is init_mm, that of a user task is the mm it owns a user of.
unsafe impl<P: Platform> KeepsMmAlive<P> for NoLazy {}
