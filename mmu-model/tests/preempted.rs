//! Tasks that lose their CPU anywhere, under every back end; what has gone wrong so, and what would.

use lazytlb_lazy_mmu::generations::{Hooks, V4};
use lazytlb_lazy_mmu::{Generation, LazyMmuState};
use lazytlb_machine::SimLocal;
use lazytlb_mmu_model::Step::{self, Disable, Enable, Interrupt, Pause, Resume, Set};
use lazytlb_mmu_model::{Arch, Flaw, Placement, World};

type Merged = LazyMmuState<SimLocal<u8>>;

/// The sequences of the literature: a section; two, one in the other; a pause in one.
const SECTION: &[Step] = &[Enable, Set(0, 1), Disable];
const NESTED: &[Step] = &[Enable, Set(0, 1), Enable, Set(0, 2), Disable, Set(0, 3), Disable];
const PAUSED: &[Step] = &[Enable, Set(0, 1), Pause, Set(0, 2), Resume, Set(0, 3), Disable];
/// What the other task does.
const OTHER: &[Step] = &[Enable, Set(1, 1), Disable];

/// All that is found under a generation, in words.
fn found_under<G: Generation + 'static>(world: &World, arch: Arch) -> Vec<String> {
    let exploration = world.explore::<G>(arch);
    assert!(exploration.complete, "{arch:?}");
    let mut found: Vec<String> = exploration.found.iter().map(|found| found.verdict.message.clone()).collect();
    found.sort();
    found.dedup();
    found
}

/// Under the merged one.
fn found(world: &World, arch: Arch) -> Vec<String> {
    found_under::<Merged>(world, arch)
}

const NOTHING: [&str; 0] = [];
const ENTERED_TWICE: &str = "kernel BUG: entered while in the mode";
const NOT_ENTERED: &str = "kernel BUG: left while not in the mode";

#[test]
fn what_is_right_is_right_at_every_point() {
    let right = Arch::ALL.into_iter().filter(|&arch| arch != Arch::X3);
    for arch in right {
        for script in [SECTION, NESTED, PAUSED] {
            for placement in [Placement::OneCpu, Placement::FirstMoves, Placement::SideBySide] {
                let world = World { placement, ..World::new([script, OTHER]) };
                assert_eq!(found(&world, arch), NOTHING, "{arch:?} {script:?} {placement:?}");
            }
        }
    }
}

#[test]
fn an_interrupt_in_a_section_changes_nothing_for_the_task() {
    for arch in [Arch::Arm64, Arch::PowerpcHash, Arch::Sparc64, Arch::X1, Arch::X4, Arch::X5] {
        let world = World::new([&[Interrupt, Enable, Set(0, 1), Enable, Disable, Disable], OTHER]);
        assert_eq!(found(&world, arch), NOTHING, "{arch:?}");
    }
}

/// Linux 7.0 to 7.1-rc3 (M01): the hooks ask the counters, which change before the callback.
#[test]
fn x3_enters_or_leaves_twice() {
    // The window in enable, and the one in disable; by either task.
    assert_eq!(found(&World::new([SECTION, OTHER]), Arch::X3), [ENTERED_TWICE, NOT_ENTERED]);
    // Resume and pause have them as well.
    assert_eq!(found(&World::new([PAUSED, &[]]), Arch::X3), [ENTERED_TWICE, NOT_ENTERED]);
    assert_eq!(found(&World { preemptions: 0, ..World::new([SECTION, OTHER]) }, Arch::X3), NOTHING);
}

/// Nested sections of the hooks alone: Xen stops (M02); where it counts them, a switch takes one level back only (M03).
#[test]
fn xen_and_the_hooks_of_2023() {
    type Then = Hooks<SimLocal<u8>>;
    let world = World::new([NESTED, OTHER]);
    assert_eq!(found_under::<Then>(&world, Arch::X1), [ENTERED_TWICE]);
    assert_eq!(found_under::<Then>(&world, Arch::X2), [ENTERED_TWICE]);
    // It is the switch: without one all is well.
    assert_eq!(found_under::<Then>(&World { preemptions: 0, ..world }, Arch::X2), NOTHING);
}

/// What is asked of a CPU before a section, by a task that is moved to another meanwhile.
#[test]
fn a_task_outside_of_sections_moves() {
    for arch in Arch::ALL.into_iter().filter(|&arch| arch != Arch::X3) {
        let world =
            World { placement: Placement::FirstMoves, ..World::new([&[Set(0, 1), Set(0, 2), Enable, Disable], OTHER]) };
        assert_eq!(found(&world, arch), NOTHING, "{arch:?}");
    }
}

/// A section that keeps neither its CPU nor its batch (M07, M08).
#[test]
fn a_batch_left_behind() {
    for arch in [Arch::PowerpcHash, Arch::Sparc64, Arch::S390] {
        // What is there already has to be invalidated.
        let script = &[Set(0, 1), Enable, Set(0, 2), Disable];
        let world = World { flaw: Some(Flaw::Preemptible), ..World::new([script, OTHER]) };
        let rule = "R6: something of a task is left on the CPU that it was taken from";
        assert!(found(&world, arch).contains(&rule.to_owned()), "{arch:?}");
        assert_eq!(found(&World { flaw: None, ..world }, arch), NOTHING, "{arch:?}");
    }
}

/// v4 without its later patch (M20): an interrupt between the level and the flag opens a section in one that is none yet.
#[test]
fn an_interrupt_between_the_level_and_the_flag() {
    let world = World::new([&[Interrupt, Enable, Set(0, 1), Disable], &[]]);
    let late = World { flaw: Some(Flaw::InterruptsLetIn), ..world.clone() };
    let warning = "call while paused, or resume while not";
    assert_eq!(found_under::<V4<SimLocal<u8>>>(&late, Arch::Arm64), [warning]);
    assert_eq!(found_under::<V4<SimLocal<u8>>>(&world, Arch::Arm64), NOTHING);
}

/// s390 asks the CPU whether a section is open, not whether it is in an interrupt: what the interrupt stores into an entry that the
/// section has named waits with the section's own.
#[test]
fn an_interrupt_uses_the_cache_of_the_section() {
    let world = World::new([&[Interrupt, Enable, Set(0, 1), Disable], &[]]);
    assert!(found(&world, Arch::S390).contains(&"R7: what an interrupt changes is not in force".to_owned()));
}

/// The hooks of May 2026 with a task that has not run yet and is not paused.
#[test]
fn a_new_task_that_is_not_paused() {
    let world = World { flaw: Some(Flaw::NewTasksNotPaused), ..World::new([SECTION, OTHER]) };
    assert_eq!(found(&world, Arch::X5), ["resume without pause"]);
}

#[test]
fn what_does_not_pair_is_found_at_the_end() {
    let world = World::new([&[Enable, Set(0, 1)], &[]]);
    assert_eq!(found(&world, Arch::Arm64), ["R1: a task ends with a section or a pause open"]);
}
