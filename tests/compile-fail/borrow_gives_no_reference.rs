//! No counted reference can be taken of what a CPU borrows: the count may be zero already, while whoever frees the mm
//! waits for this CPU.

use lazytlb::{ARef, IrqsOff, Mm, Shootdown, Switcher};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn keep(switcher: &Switcher<P, Shootdown>, irqs_off: &IrqsOff<'_, P>) -> ARef<Mm<P, Shootdown>> {
    switcher.active_mm(irqs_off).mmgrab()
}

fn main() {}
