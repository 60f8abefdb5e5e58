//! The count and the mask are for strategies and architectures, which promise what hangs on them.

use lazytlb::{CpuId, Mm, Refcount};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn underflow(mm: &Mm<P, Refcount>) {
    mm.core().count_sub(1);
}

fn hide(mm: &Mm<P, Refcount>, cpu: CpuId) {
    mm.core().cpumask().clear_cpu(cpu, core::sync::atomic::Ordering::Relaxed);
}

fn main() {}
