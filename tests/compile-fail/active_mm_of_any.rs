//! A strategy chosen at boot has the weakest promise: `active_mm` may dangle, so it cannot be looked into.

use lazytlb::{AnyLazyTlb, IrqsOff, Switcher};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn peek(switcher: &Switcher<P, AnyLazyTlb>, irqs_off: &IrqsOff<'_, P>) -> usize {
    switcher.active_mm(irqs_off).count()
}

fn main() {}
