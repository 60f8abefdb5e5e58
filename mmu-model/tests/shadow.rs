//! KASAN's shadow of vmalloc space under back ends that defer the store, and those that do not: what goes wrong, and what cures it.

use std::collections::BTreeSet;

use lazytlb_lazy_mmu::LazyMmuState;
use lazytlb_machine::{Kind, SimLocal};
use lazytlb_mmu_model::Step::{self, Depopulate, Populate, TouchShadow};
use lazytlb_mmu_model::{Arch, Cure, Placement, World};

/// All kinds that are found when two tasks run side by side.
fn kinds(scripts: [&[Step]; 2], arch: Arch) -> BTreeSet<Kind> {
    let world = World { placement: Placement::SideBySide, ..World::new(scripts) };
    let exploration = world.explore::<LazyMmuState<SimLocal<u8>>>(arch);
    assert!(exploration.complete, "{arch:?}");
    exploration.found.iter().map(|found| found.verdict.kind).collect()
}

/// Two that install, two that remove, one of each.
fn populate_populate(cure: Cure) -> [Vec<Step>; 2] {
    [vec![Populate(cure), TouchShadow], vec![Populate(cure), TouchShadow]]
}

fn depopulate_depopulate(cure: Cure) -> [Vec<Step>; 2] {
    [vec![Depopulate(cure)], vec![Depopulate(cure)]]
}

fn depopulate_populate(cure: Cure) -> [Vec<Step>; 2] {
    [vec![Depopulate(cure)], vec![Populate(cure)]]
}

fn all(scripts: [Vec<Step>; 2], arch: Arch) -> BTreeSet<Kind> {
    let [first, second] = &scripts;
    kinds([first, second], arch)
}

/// Where the store waits.
const LATE: [Arch; 3] = [Arch::X1, Arch::X5, Arch::S390];
/// Where it is at once.
const AT_ONCE: [Arch; 3] = [Arch::Arm64, Arch::PowerpcHash, Arch::Sparc64];

#[test]
fn what_cures_it_and_what_does_not() {
    for arch in LATE.into_iter().chain(AT_ONCE) {
        for cure in Cure::ALL {
            let found = [populate_populate(cure), depopulate_depopulate(cure), depopulate_populate(cure)]
                .map(|scripts| all(scripts, arch));
            let cures = AT_ONCE.contains(&arch) || !matches!(cure, Cure::None | Cure::NestedAround);
            assert_eq!(found.iter().all(BTreeSet::is_empty), cures, "{arch:?} {cure:?}: {found:?}");
        }
    }
}

/// What comes of it: both install their page, so one is lost and with it what was written there; both free the page that they
/// have seen, while it is mapped.
#[test]
fn what_goes_wrong() {
    for arch in LATE {
        for cure in [Cure::None, Cure::NestedAround] {
            let found = all(populate_populate(cure), arch);
            assert!(found.is_superset(&BTreeSet::from([Kind::Invariant, Kind::Leak])), "{arch:?} {found:?}");
            let found = all(depopulate_depopulate(cure), arch);
            assert!(found.is_superset(&BTreeSet::from([Kind::Invariant, Kind::DoubleFree])), "{arch:?} {found:?}");
        }
    }
}
