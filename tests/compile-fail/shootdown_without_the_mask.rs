//! Shootdown aims at `mm_cpumask`; on a machine whose mask loses CPUs that still borrow, as x86's does, it does not
//! compile.

use lazytlb::core::mm_switch::IpiFlush;
use lazytlb::{Shootdown, Switcher};
use lazytlb_toy::Toy;

fn run(_: &Switcher<Toy<2, 1, IpiFlush>, Shootdown>) {}

fn main() {}
