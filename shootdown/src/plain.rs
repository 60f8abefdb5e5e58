//! [`Plain`]: the flush rule of hardware without tags and without an invalidation that reaches other CPUs.

use core::fmt;
use core::marker::PhantomData;

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::memory::{Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::mm_switch::{ArchHost, FLUSH, FlushRange, MASK_CLEAR, MASK_SET, MmSwitch};
use lazytlb_core::platform::{IrqsOff, Platform};

/// Every load of a root drops all cached translations, and a flush interrupts every CPU of `mm_cpumask`, lazy or not.
///
/// * A CPU is in the mask from before it loads the root. It leaves it in a flush that finds it elsewhere, by its own hand:
///   what it had cached went when it loaded another root.
/// * The MMU moves exactly when the scheduler says, so the mask covers `active_mm`:
///   [`MaskCoversLazy`](lazytlb_core::platform::MaskCoversLazy) holds. A lazy CPU that is interrupted flushes and stays:
///   `FLUSH_ENDS_BORROWS` does not hold, and the strategy keeps the root table for it.
/// * A switch to the mm that is loaded already changes nothing, the mask neither: to leave it and enter again would open a
///   window in which a flush passes by while old translations stay (OpenBSD commit 9f1181d59de3).
///
/// *Orderings:* pair L8, with [`MASK_SET`] and [`FLUSH`].
///
/// Source: the common core of the ports without ASIDs, and OpenBSD's `pmap` for amd64 of before its use of PCIDs; the mask
/// that is left late is Linux 6.14's.
pub type Plain = PlainRule<Unchanged>;

/// [`Plain`], with the steps that a test can override.
pub struct PlainRule<Steps>(PhantomData<Steps>);

impl<Steps> fmt::Debug for PlainRule<Steps> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainRule")
    }
}

/// The steps that a test can override.
pub trait PlainSteps: 'static {
    /// The CPU switches to the mm that it is on.
    fn stay<P: Platform>(mm: &MmCore<P>, cpu: CpuId) {
        let _ = (mm, cpu);
    }

    /// The CPU has left `prev` for another mm. By pointer only: `prev` may be gone.
    fn left<P: Platform>(prev: MmPtr<P>, cpu: CpuId) {
        let _ = (prev, cpu);
    }
}

/// The steps as they must be.
#[derive(Clone, Copy, Debug)]
pub struct Unchanged;

impl PlainSteps for Unchanged {}

impl<P: Platform<Arch = Self>, Steps: PlainSteps> MmSwitch<P> for PlainRule<Steps> {
    type CpuState = ();
    type MmState = ();

    const SWITCH_MM_IS_BARRIER: bool = false;

    unsafe fn switch_mm_irqs_off(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, prev: MmPtr<P>, next: &MmCore<P>) {
        let cpu = irqs_off.cpu();
        if prev == MmPtr::from(next) {
            return Steps::stay(next, cpu);
        }
        if MmPtr::from(next) != MmPtr::from(host.init_mm()) && !next.cpumask().test_cpu(cpu, Relaxed) {
            // SAFETY: this is the architecture.
            unsafe { next.cpumask_of_arch() }.set_cpu(cpu, MASK_SET);
        }
        // SAFETY: `next` lives until the CPU leaves it, and its root with it.
        unsafe { irqs_off.platform().load_root(next.root()) };
        Steps::left(prev, cpu);
    }

    fn enter_lazy_tlb(_host: &impl ArchHost<P>, _irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>) {}

    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, _range: FlushRange, tables_freed: bool) {
        host.platform().fence(SeqCst.at(FLUSH));
        host.flush_cpus(mm, tables_freed);
    }

    unsafe fn flush_ipi(_host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, mm: MmPtr<P>, _tables_freed: bool) {
        // SAFETY: alive, the flusher waits.
        let mm = unsafe { mm.as_ref() };
        if irqs_off.platform().read_root() == mm.root() {
            irqs_off.platform().flush_tlb_local();
        } else {
            // SAFETY: this is the architecture.
            unsafe { mm.cpumask_of_arch() }.clear_cpu(irqs_off.cpu(), Release.at(MASK_CLEAR));
        }
    }
}
