//! The shootdown family: a borrow costs nothing, and whoever frees the mm takes the borrowers off it by interrupt.
//!
//! [`Shootdown`] is Nicholas Piggin's "shoot lazies" (posted 2020, merged in Linux 6.4, commit 2655421ae69f), which
//! 64-bit server powerpc uses. On a 16-socket POWER8 a context-switch microbenchmark went from about 1 to 118 million
//! switches a second when it replaced reference counting.
//!
//! * [`ShootdownBatched`] shoots for many dying mms at once;
//! * [`UsersOnly`] does it when the last user goes, by the flush that is due then;
//! * [`LazyFix`] is FreeBSD's ancestor of it, which asks the hardware's root register.
//!
//! # Flush rules
//!
//! Eviction rides on the TLB shootdown, so the flush protocols of architectures are here too: each an
//! [`MmSwitch`](lazytlb_core::mm_switch::MmSwitch), for a platform's `Arch`. They work under any strategy whose preconditions
//! they meet.
//!
//! | rule | a flush interrupts | cached translations | mask covers `active_mm` | last flush ends borrows |
//! | --- | --- | --- | --- | --- |
//! | [`Plain`] | everybody in the mask | dropped by each load of a root | yes | no |
//! | [`X86_6_12`] | the mask but for lazy CPUs; all if tables are freed | kept under PCIDs, compared by generation | no | no |
//! | [`X86_6_14`] | as above, but for CPUs on other mms | the same | no | no |
//! | [`X86Broadcast`] | the same, until the mm runs on several CPUs; then nobody | the same; then under an ASID for life | no | no |
//! | [`PowerRadix`] | nobody, or the mask where that lets it shrink | kept under the mm's own PID | yes | yes |
//! | [`Arm64`] | nobody | kept under ASIDs, which are handed out anew | yes | no |

#![cfg_attr(not(test), no_std)]

pub mod arm64;
pub mod batched;
pub mod lazyfix;
pub mod plain;
pub mod power_radix;
pub mod users_only;
pub mod x86;
pub mod x86_broadcast;

pub use arm64::Arm64;
pub use batched::ShootdownBatched;
pub use lazyfix::LazyFix;
pub use plain::Plain;
pub use power_radix::PowerRadix;
pub use users_only::UsersOnly;
pub use x86::{X86_6_12, X86_6_14};
pub use x86_broadcast::X86Broadcast;

use lazytlb_core::cpumask::Among;
use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::platform::{Context, IpisInterrupt, MaskCoversLazy, Platform};

/// No reference; an eviction round before the mm is freed (Linux `MMU_LAZY_TLB_SHOOTDOWN`).
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread, kernel thread to kernel thread | nothing |
/// | kernel thread to user | one full barrier |
/// | freeing | an interrupt to each CPU of `mm_cpumask`, and a wait for all of them |
///
/// *Needs:* that `mm_cpumask` covers every borrower when the count reaches zero ([`MaskCoversLazy`]), and that an
/// interrupt reaches them ([`IpisInterrupt`]).
///
/// *Cannot:* free with interrupts off; leave isolated CPUs alone; work where the mask loses CPUs that still borrow.
///
/// *Orderings:* the interrupt is the barrier. A switch runs with interrupts off, so the handler runs before or after a
/// whole switch. If it runs after a switch to a user task, what that switch parked for its tail may be freed memory by
/// the time of the tail, which therefore only compares it: [`mmdrop_lazy_tlb`](LazyTlb::mmdrop_lazy_tlb) takes a
/// pointer, not a reference, and here does no more than fence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shootdown {
    /// Whether a second round asks *all* online CPUs whether one still borrows (Linux `DEBUG_VM_SHOOT_LAZIES`).
    pub debug_shoot_lazies: bool,
}

impl<P: IpisInterrupt + MaskCoversLazy> LazyTlb<P> for Shootdown {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "shootdown"
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &(), _mm: &MmCore<P>) {}

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: it is freed by who this says, and only then.
        let core = unsafe { mm.as_ref() };
        host.evict_lazies(core, Among::Mask(core.cpumask()), |_| true);
        if self.debug_shoot_lazies {
            host.check_lazies_gone(core);
        }
        Freeing::Now
    }

    /// The round waits for other CPUs, which may be waiting for this one.
    fn may_free(&self, context: Context) -> bool {
        context.may_wait_for_cpus()
    }
}

// SAFETY: the mm is freed only after every CPU that may have it as active_mm has answered the round, and a CPU with
// interrupts off does not answer.
unsafe impl<P: IpisInterrupt + MaskCoversLazy> KeepsMmAlive<P> for Shootdown {}

/// What [`Shootdown`] asks of its platform, for bounds elsewhere: [`Platform`] with both claims.
pub trait CanShoot: Platform + IpisInterrupt + MaskCoversLazy {}

impl<P: IpisInterrupt + MaskCoversLazy> CanShoot for P {}
