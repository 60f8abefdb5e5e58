//! A section cannot end in a pause that began inside of it, nor before a section in it.

use lazytlb::lazy_mmu::{LazyMmuArch, MaySleep};

fn ends_in_a_pause<A: LazyMmuArch>(task: &mut MaySleep<'_, A>) {
    let mut section = task.enable();
    let pause = section.pause();
    drop(section);
    drop(pause);
}

fn outlives_its_pause<A: LazyMmuArch>(task: &mut MaySleep<'_, A>) {
    let mut pause = task.pause();
    let section = pause.enable();
    drop(pause);
    drop(section);
}

fn main() {}
