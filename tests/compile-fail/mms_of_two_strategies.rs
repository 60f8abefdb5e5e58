//! An mm belongs to the strategy that it was made for.

use lazytlb::{ARef, HazardConvert, MmWithUser, Refcount, Switcher, Task};
use lazytlb_toy::Toy;

type P = Toy<2, 1>;

fn exec(switcher: &Switcher<P, Refcount>, task: &Task<P>, mm: ARef<MmWithUser<P, HazardConvert>>) {
    unsafe { switcher.exec_mmap(task, mm) }
}

fn main() {}
