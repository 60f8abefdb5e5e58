//! A strategy that does not promise to keep `active_mm` alive does not give it out.

use lazytlb::core::mm::{CountRef, MmCore, MmPtr};
use lazytlb::{IrqsOff, LazyTlb, Platform, Switcher};
use lazytlb_toy::Toy;

struct Unprotected;

impl<P: Platform> LazyTlb<P> for Unprotected {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "unprotected"
    }

    fn mmgrab_lazy_tlb(&self, _: P, _: &(), _: &(), _: &MmCore<P>) {}

    fn mmdrop_lazy_tlb(&self, _: P, _: MmPtr<P>) -> Option<CountRef<P>> {
        None
    }
}

type P = Toy<2, 1>;

fn peek(switcher: &Switcher<P, Unprotected>, irqs_off: &IrqsOff<'_, P>) -> usize {
    switcher.active_mm(irqs_off).count()
}

fn main() {}
