//! [`LazyFix`]: one CPU after the other, by what its hardware says.

use lazytlb_core::cpumask::Among;
use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::Ordering::Relaxed;
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::platform::{Context, IpisInterrupt, MaskCoversLazy};

/// FreeBSD's `pmap_lazyfix`: before the mm is freed, each CPU of its mask is interrupted, the lowest first and one at a
/// time, and leaves it if its *root register* holds the mm's root.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread, kernel thread to kernel thread | nothing |
/// | kernel thread to user | one full barrier |
/// | freeing | an interrupt to each CPU of `mm_cpumask`, and a wait for each |
///
/// *Needs:* that the mask covers every borrower ([`MaskCoversLazy`]), and that MMU and `active_mm` only move together:
/// FreeBSD keeps no pointer beside the register, so it cannot have one that dangles. Interrupts ([`IpisInterrupt`]).
///
/// *Cannot:* what [`Shootdown`](crate::Shootdown) cannot; and its wait grows with the number of CPUs, because each round
/// waits for the one before.
///
/// Source: sys/i386/i386/pmap.c of FreeBSD 5 to 12 and DragonFly's version; the former gives up a wait after 50 million
/// spins, which this does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct LazyFix;

impl<P: IpisInterrupt + MaskCoversLazy> LazyTlb<P> for LazyFix {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "lazyfix"
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &(), _mm: &MmCore<P>) {}

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: it is freed by who this says, and only then.
        let core = unsafe { mm.as_ref() };
        for lowest in core.cpumask().cpus(Relaxed) {
            host.evict_by_root(core, Among::Mask(core.cpumask()), |cpu| cpu == lowest);
        }
        Freeing::Now
    }

    /// The round waits for other CPUs, which may be waiting for this one.
    fn may_free(&self, context: Context) -> bool {
        context.may_wait_for_cpus()
    }
}

// SAFETY: as for Shootdown; MMU and pointer move together where the mask covers the pointer.
unsafe impl<P: IpisInterrupt + MaskCoversLazy> KeepsMmAlive<P> for LazyFix {}
