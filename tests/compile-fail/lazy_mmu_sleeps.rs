//! A section cannot sleep: what sleeps wants the proof that the section has borrowed.

use lazytlb::lazy_mmu::{LazyMmuArch, MaySleep};

fn schedule<A: LazyMmuArch>(_: &mut MaySleep<'_, A>) {}

fn sleeps<A: LazyMmuArch>(task: &mut MaySleep<'_, A>) {
    let section = task.enable();
    schedule(task);
    drop(section);
}

fn main() {}
