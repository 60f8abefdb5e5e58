//! [`UsersOnly`]: whoever borrows is evicted when the last user goes.

use lazytlb_core::cpumask::Among;
use lazytlb_core::lazy_tlb::{Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::mm::MmCore;
use lazytlb_core::platform::{IpisInterrupt, MaskCoversLazy};

/// No reference and no round of its own: the flush of the last mmput must interrupt the borrowers anyway, because page
/// tables are freed, and it ends their borrows.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread, kernel thread to kernel thread | nothing |
/// | kernel thread to user | one full barrier |
/// | last user | nothing more than the flush, where that ends borrows; else an interrupt to each CPU of `mm_cpumask` |
/// | freeing | nothing |
///
/// *Needs:* a mask that covers every borrower ([`MaskCoversLazy`]), and interrupts ([`IpisInterrupt`]). Where
/// [`FLUSH_ENDS_BORROWS`](MaskCoversLazy::FLUSH_ENDS_BORROWS) holds it is free; hardware that broadcasts its
/// invalidations has no flush interrupt to ride on and pays for a round.
///
/// *Cannot:* let a borrow outlive the users, whatever keeps the struct; leave isolated CPUs alone if they borrow.
///
/// *Orderings:* as for [`Shootdown`](crate::Shootdown), with the look at the mask after the last mmput (full). No borrow
/// begins once there is no user (invariant I4).
///
/// Source: Linus Torvalds, January 2022, in the thread of "sched: Use lightweight hazard pointers to grab lazy mms";
/// Lutomirski's answers name what the flush must then do. Zijlstra's branch x86/lazy began it. Not merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsersOnly;

impl<P: IpisInterrupt + MaskCoversLazy> LazyTlb<P> for UsersOnly {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "users-only"
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &(), _mm: &MmCore<P>) {}

    fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        if !P::FLUSH_ENDS_BORROWS {
            host.evict_lazies(mm, Among::Mask(mm.cpumask()), |_| true);
        }
    }
}

// SAFETY: once the users are gone no CPU borrows the mm: those that did have answered the flush, or the round, and none
// can begin. A CPU with interrupts off answers neither, and until it does the last mmput still owns the users' reference.
unsafe impl<P: IpisInterrupt + MaskCoversLazy> KeepsMmAlive<P> for UsersOnly {}
