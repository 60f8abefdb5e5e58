//! What a switch releases must be dropped after it.

#![deny(unused_must_use)]

use lazytlb::{IrqsOff, Refcount, Switcher};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn tail(switcher: &Switcher<P, Refcount>, irqs_off: &IrqsOff<'_, P>) {
    switcher.finish_task_switch(irqs_off);
}

fn main() {}
