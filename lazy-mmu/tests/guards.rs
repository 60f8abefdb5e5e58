//! Guards: what they call, and what of their misuse is reported.

mod recorder;

use lazytlb_lazy_mmu::{Anywhere, LazyMmuArch, LazyMmuState, MaySleep};
use recorder::Recorder;

/// The current task, outside of any section.
fn may_sleep<'a>(state: &'a LazyMmuState, arch: &'a Recorder) -> MaySleep<'a, Recorder> {
    // SAFETY: the state is new, and each test makes one such value of it.
    unsafe { MaySleep::assume(state, arch) }
}

#[test]
fn guards_pair() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let mut task = may_sleep(&state, &arch);
    let mut outer = task.enable();
    let mut inner = outer.enable();
    let mut pause = inner.pause();
    let ignored = pause.enable();
    drop(ignored);
    assert_eq!(arch.seen(), "enter leave");
    drop(pause);
    assert_eq!(arch.seen(), "enter");
    drop(inner);
    assert_eq!(arch.seen(), "flush");
    drop(outer);
    assert_eq!(arch.seen(), "leave");
    drop(task.enable_with_ptes(7));
    assert_eq!(arch.seen(), "enter(7) leave");
    task.might_sleep();
    assert_eq!(arch.seen(), "");
}

#[test]
fn a_forgotten_section_is_ended_with_the_one_around_it() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let mut task = may_sleep(&state, &arch);
    let mut outer = task.enable();
    let mut inner = outer.enable();
    std::mem::forget(inner.pause());
    std::mem::forget(inner);
    assert_eq!(arch.seen(), "enter leave");
    drop(outer);
    assert_eq!(arch.seen(), "Forgotten! enter flush leave");
    assert_eq!((state.enable_count(), state.pause_count()), (0, 0));
}

#[test]
fn a_forgotten_section_is_ended_where_the_task_sleeps() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let mut task = may_sleep(&state, &arch);
    std::mem::forget(task.enable());
    arch.seen();
    task.might_sleep();
    assert_eq!(arch.seen(), "Forgotten! leave");
}

#[test]
fn a_forgotten_outermost_section_is_ended_with_what_it_began_by() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    std::mem::forget(may_sleep(&state, &arch).enable());
    assert_eq!(arch.seen(), "enter Forgotten! leave");
    // SAFETY: the innermost code of the task.
    std::mem::forget(unsafe { Anywhere::assume(&state, &arch) }.pause());
    assert_eq!(arch.seen(), "Forgotten!");
    assert_eq!((state.enable_count(), state.pause_count()), (0, 0));
}

#[test]
fn a_task_may_sleep_in_a_pause() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let mut task = may_sleep(&state, &arch);
    let mut section = task.enable();
    let mut pause = section.pause();
    // SAFETY: a test may.
    let mut inside = unsafe { pause.may_sleep() };
    std::mem::forget(inside.pause());
    assert_eq!(arch.seen(), "enter leave");
    inside.might_sleep();
    assert_eq!(arch.seen(), "Forgotten!", "and the pause itself is none of what was forgotten");
    assert_eq!((state.enable_count(), state.pause_count()), (1, 1));
    drop(inside);
    drop(pause);
    drop(section);
    assert_eq!(arch.seen(), "enter leave");
}

#[test]
fn raw_calls_that_do_not_pair_are_noticed() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let section_and = |calls: &dyn Fn()| {
        let mut task = may_sleep(&state, &arch);
        let section = task.enable();
        arch.seen();
        calls();
        let during = arch.seen();
        drop(section);
        let behind = arch.seen();
        assert_eq!((state.enable_count(), state.pause_count()), (0, 0));
        (during, behind)
    };
    let seen = |during: &str, behind: &str| (during.to_owned(), behind.to_owned());
    assert_eq!(section_and(&|| state.lazy_mmu_mode_enable(&arch)), seen("", "Forgotten! flush leave"));
    assert_eq!(section_and(&|| state.lazy_mmu_mode_pause(&arch)), seen("leave", "Forgotten! enter leave"));
    assert_eq!(section_and(&|| state.lazy_mmu_mode_disable(&arch)), seen("leave", "Unbalanced!"));
}

#[test]
fn the_ends_of_a_section_lie_in_the_same_context() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    // It begins outside and ends inside: Linux says nothing, and leaves the mode on (T8).
    // SAFETY: there is no other.
    let mut task = unsafe { Anywhere::assume(&state, &arch) };
    let section = task.enable();
    arch.in_interrupt.set(true);
    drop(section);
    assert_eq!(arch.seen(), "enter ContextChanged!");
    arch.in_interrupt.set(false);
    assert_eq!(state.enable_count(), 1, "an interrupt cannot end it");
    state.lazy_mmu_mode_disable(&arch);
    arch.seen();
    // It begins inside and ends outside: the end would be one too many.
    arch.in_interrupt.set(true);
    let section = task.enable();
    arch.in_interrupt.set(false);
    drop(section);
    assert_eq!(arch.seen(), "ContextChanged!");
    assert_eq!(state.enable_count(), 0);
}

#[test]
fn an_interrupt_in_a_section_opens_its_own() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let mut task = may_sleep(&state, &arch);
    let section = task.enable();
    arch.in_interrupt.set(true);
    {
        // SAFETY: it is gone when the handler returns.
        let mut handler = unsafe { Anywhere::assume(&state, &arch) };
        let mut own = handler.enable();
        drop(own.pause());
        assert!(!state.is_lazy_mmu_mode_active(&arch));
    }
    arch.in_interrupt.set(false);
    assert_eq!(arch.seen(), "enter");
    drop(section);
    assert_eq!(arch.seen(), "leave");
}

#[test]
fn an_architecture_can_be_chosen_at_run_time() {
    let (state, arch) = (LazyMmuState::new(), Recorder::default());
    let chosen: &dyn LazyMmuArch<Ptes = u32> = &arch;
    // SAFETY: there is no other.
    drop(unsafe { Anywhere::assume(&state, chosen) }.enable());
    assert_eq!(arch.seen(), "enter leave");
}
