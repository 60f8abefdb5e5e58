//! State of each level: hints in inner sections, and pauses that remember them.

mod recorder;

use lazytlb_lazy_mmu::LazyMmuState;
use recorder::Recorder;

#[test]
fn an_inner_hint_counts_and_the_outer_one_comes_back() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let outer = state.lazy_mmu_mode_enable_level(&arch, 1);
    assert_eq!(arch.seen(), "enter(1)");
    let inner = state.lazy_mmu_mode_enable_level(&arch, 2);
    assert_eq!(arch.seen(), "leave enter(2)", "what the outer one has deferred is in force");
    let innermost = state.lazy_mmu_mode_enable_level(&arch, 3);
    assert_eq!(arch.seen(), "leave enter(3)");
    state.lazy_mmu_mode_disable_level(&arch, innermost);
    assert_eq!((arch.seen().as_str(), arch.level.get()), ("leave restore(2)", Some(2)));
    state.lazy_mmu_mode_disable_level(&arch, inner);
    assert_eq!((arch.seen().as_str(), arch.level.get()), ("leave restore(1)", Some(1)));
    state.lazy_mmu_mode_disable_level(&arch, outer);
    assert_eq!(arch.seen(), "leave");
    assert_eq!(state.enable_count(), 0);
}

#[test]
fn a_pause_remembers() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let outer = state.lazy_mmu_mode_enable_level(&arch, 1);
    let pause = state.lazy_mmu_mode_pause_level(&arch);
    let inner_pause = state.lazy_mmu_mode_pause_level(&arch);
    state.lazy_mmu_mode_resume_level(&arch, inner_pause);
    assert_eq!(arch.seen(), "enter(1) leave");
    state.lazy_mmu_mode_resume_level(&arch, pause);
    assert_eq!(arch.seen(), "restore(1)");
    state.lazy_mmu_mode_disable_level(&arch, outer);
    assert_eq!(arch.seen(), "leave");
    // The plain calls forget (T19).
    state.lazy_mmu_mode_enable_with_ptes(&arch, 1);
    state.lazy_mmu_mode_pause(&arch);
    state.lazy_mmu_mode_resume(&arch);
    state.lazy_mmu_mode_disable(&arch);
    assert_eq!(arch.seen(), "enter(1) leave enter leave");
}

#[test]
fn they_mix_with_plain_calls() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    state.lazy_mmu_mode_enable(&arch);
    let inner = state.lazy_mmu_mode_enable_level(&arch, 2);
    state.lazy_mmu_mode_enable(&arch);
    state.lazy_mmu_mode_disable(&arch);
    state.lazy_mmu_mode_disable_level(&arch, inner);
    assert_eq!((arch.seen().as_str(), arch.level.get()), ("enter leave enter(2) flush leave restore", None));
    state.lazy_mmu_mode_disable(&arch);
    assert_eq!(arch.seen(), "leave");
}

#[test]
fn what_begins_where_nothing_counts_ends_without_effect() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    // T13, which ends with the mode on when the calls are plain.
    state.lazy_mmu_mode_pause(&arch);
    let section = state.lazy_mmu_mode_enable_level(&arch, 1);
    state.lazy_mmu_mode_resume(&arch);
    state.lazy_mmu_mode_disable_level(&arch, section);
    assert_eq!((arch.seen().as_str(), state.enable_count()), ("", 0));
    arch.in_interrupt.set(true);
    let section = state.lazy_mmu_mode_enable_level(&arch, 1);
    let pause = state.lazy_mmu_mode_pause_level(&arch);
    state.lazy_mmu_mode_resume_level(&arch, pause);
    state.lazy_mmu_mode_disable_level(&arch, section);
    assert_eq!((arch.seen().as_str(), state.enable_count(), state.pause_count()), ("", 0, 0));
}
