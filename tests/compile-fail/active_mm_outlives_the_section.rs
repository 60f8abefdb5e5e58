//! `active_mm` cannot be carried out of the section with interrupts off.

use lazytlb::{IrqsOff, Refcount, Switcher};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn count(switcher: &Switcher<P, Refcount>, platform: P) -> usize {
    let kept = {
        // SAFETY: not at all; but the types do not know.
        let irqs_off = unsafe { IrqsOff::assume(platform) };
        switcher.active_mm(&irqs_off)
    };
    kept.core().count()
}

fn main() {}
