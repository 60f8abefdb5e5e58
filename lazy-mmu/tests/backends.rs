//! Back ends on a machine that writes down what they ask of hardware: what is deferred, to when, and what is read meanwhile.

use lazytlb_lazy_mmu::backends::xen::{Form, SwitchState, X1, X2, X3, X4, X5};
use lazytlb_lazy_mmu::backends::{Arm64, MmuKernel, PowerpcHash, Pte, PteAccess, S390, Sparc64, Xen};
use lazytlb_lazy_mmu::{LazyMmuArch, LazyMmuState};
use lazytlb_toy_mmu::Op::{self, Barriers, HashFlush, Hypercall, Ipte, TlbFlush, TsbFlush};
use lazytlb_toy_mmu::{BATCH, DIRTY, QUEUE, TABLE, ToyMmu, WRITE, YOUNG};
use proptest::prelude::*;

type Powerpc = PowerpcHash<ToyMmu, BATCH>;
type Sparc = Sparc64<ToyMmu, BATCH>;
type XenPv<F> = Xen<ToyMmu, F, QUEUE>;
type Z = S390<ToyMmu, TABLE>;

/// A task on a new machine with a back end.
struct Task<B> {
    state: LazyMmuState,
    arch: B,
}

impl<B: PteAccess<Kernel = ToyMmu>> Task<B> {
    fn new(arch: B) -> Self {
        ToyMmu.reset();
        Task { state: LazyMmuState::new(), arch }
    }

    /// Makes a call of the generic layer.
    fn call(&self, call: impl FnOnce(&LazyMmuState, &B)) -> &Self {
        call(&self.state, &self.arch);
        ToyMmu.set_active(self.state.task_lazy_mmu_mode_active());
        self
    }

    fn enable(&self) -> &Self {
        self.call(|state, arch| state.lazy_mmu_mode_enable(arch))
    }

    fn disable(&self) -> &Self {
        self.call(|state, arch| state.lazy_mmu_mode_disable(arch))
    }

    fn pause(&self) -> &Self {
        self.call(|state, arch| state.lazy_mmu_mode_pause(arch))
    }

    fn resume(&self) -> &Self {
        self.call(|state, arch| state.lazy_mmu_mode_resume(arch))
    }

    fn set(&self, addr: usize, value: usize) -> &Self {
        // SAFETY: the machine's tables stay.
        unsafe { self.arch.set_pte(ToyMmu.pte(addr), value) };
        self
    }

    fn set_all(&self, addrs: core::ops::Range<usize>, value: usize) {
        for addr in addrs {
            self.set(addr, value);
        }
    }

    /// Through the accessor.
    fn get(&self, addr: usize) -> usize {
        // SAFETY: the machine's tables stay.
        unsafe { self.arch.ptep_get(ToyMmu.pte(addr)) }
    }

    /// What hardware was asked for since the last time.
    fn ops(&self) -> Vec<Op> {
        ToyMmu.ops()
    }
}

/// What the hardware sees of an entry.
fn raw(addr: usize) -> usize {
    // SAFETY: the machine's tables stay.
    unsafe { ToyMmu.pte(addr).load() }
}

#[test]
fn arm64_makes_one_pair_of_barriers_of_all() {
    let task = Task::new(Arm64(ToyMmu));
    task.set(1, 1).set(2, 1);
    assert_eq!(task.ops(), [Barriers, Barriers], "outside of a section one for each");
    task.enable().set(3, 1).set(4, 1);
    assert_eq!((task.ops(), raw(4)), (vec![], 1), "the store is at once");
    // A nested section, as DEBUG_PAGEALLOC opens: its end is a pair, and the rest is batched still.
    task.enable().set(5, 1).disable();
    assert_eq!(task.ops(), [Barriers]);
    task.set(6, 1).set(7, 1).disable();
    assert_eq!(task.ops(), [Barriers]);
    task.enable().set(6, 0).disable();
    assert_eq!(task.ops(), [], "who finds an entry invalid takes a fault");
}

#[test]
fn arm64_in_an_interrupt_defers_nothing_and_leaves_the_task_alone() {
    let task = Task::new(Arm64(ToyMmu));
    task.enable().set(1, 1);
    ToyMmu.irq_enter();
    task.set(2, 1);
    task.call(|state, arch| state.lazy_mmu_mode_enable(arch)).set(3, 1).disable();
    assert_eq!(task.ops(), [Barriers, Barriers]);
    ToyMmu.irq_exit();
    task.disable();
    assert_eq!(task.ops(), [Barriers], "the task's own are due still");
}

#[test]
fn powerpc_invalidates_old_entries_together() {
    let task = Task::new(PowerpcHash(ToyMmu) as Powerpc);
    let map = |count: usize| task.set_all(0..count, 1);
    let unmap = |count: usize| task.set_all(0..count, 0);
    map(300);
    assert_eq!(task.ops(), [], "what was not there is in no hash table");
    task.set(299, 0);
    assert_eq!(task.ops(), [HashFlush(1)]);
    task.enable();
    assert_eq!(ToyMmu.preempt_count(), 1);
    unmap(1);
    task.disable();
    assert_eq!((task.ops(), ToyMmu.preempt_count()), (vec![HashFlush(1)], 0), "a batch of one is none");
    map(1);
    task.enable();
    unmap(250);
    assert_eq!(task.ops(), [HashFlush(192)], "a full batch does not wait");
    task.disable();
    assert_eq!(task.ops(), [HashFlush(58)]);
}

#[test]
fn powerpc_batches_one_mm_and_on_radix_nothing() {
    let task = Task::new(PowerpcHash(ToyMmu) as Powerpc);
    task.set(1, 1).set(2, 1).set(3, 1);
    task.enable().set(1, 0).set(2, 0);
    // Reclaim, in the middle of fork, ages an entry of another mm.
    // SAFETY: the machine's tables stay.
    unsafe { task.arch.set_pte(Pte { mm: 2, ..ToyMmu.pte(3) }, 0) };
    assert_eq!(task.ops(), [HashFlush(2)]);
    // Pages are about to be freed.
    task.arch.tlb_flush();
    assert_eq!(task.ops(), [HashFlush(1)]);
    task.disable();
    ToyMmu.set_radix(true);
    task.enable();
    assert_eq!(ToyMmu.preempt_count(), 0);
    task.enable().set(1, 1).set(1, 0).disable().disable();
    assert_eq!((task.ops(), ToyMmu.preempt_count()), (vec![], 0));
}

#[test]
fn sparc64_invalidates_addresses_together() {
    let task = Task::new(Sparc64(ToyMmu) as Sparc);
    task.set_all(0..4, 1);
    task.set(3, 0);
    assert_eq!(task.ops(), [TsbFlush(1), TlbFlush(1)]);
    task.enable().set(0, 0).set(1, 0);
    assert_eq!((task.ops(), ToyMmu.preempt_count()), (vec![], 1));
    task.enable().disable();
    assert_eq!(task.ops(), [TsbFlush(2), TlbFlush(2)], "the end of an inner section flushes");
    // SAFETY: the machine's tables stay.
    unsafe { task.arch.set_pte(Pte { mm: 0, ..ToyMmu.pte(2) }, 0) };
    task.disable();
    assert_eq!((task.ops(), ToyMmu.preempt_count()), (vec![], 0), "the kernel's own entries are not batched");
}

#[test]
fn xen_queues_stores_and_flushes_in_order() {
    let task = Task::new(XenPv::<X1>::new(ToyMmu));
    task.set(1, 1);
    assert_eq!((task.ops(), raw(1)), (vec![Hypercall(1)], 1));
    task.enable().set(1, 2);
    assert_eq!((task.get(1), raw(1)), (1, 1), "the old value, for everybody");
    task.arch.flush_tlb_page(1);
    task.set(2, 2);
    assert_eq!(task.ops(), []);
    task.disable();
    assert_eq!((task.ops(), raw(1), raw(2)), (vec![Hypercall(3), TlbFlush(1)], 2, 2));
    // A full queue does not wait.
    task.enable();
    task.set_all(0..40, 3);
    assert_eq!(task.ops(), [Hypercall(32)]);
    task.pause();
    assert_eq!(task.ops(), [Hypercall(8)]);
    task.set(50, 1);
    assert_eq!(task.ops(), [Hypercall(1)]);
    task.resume().disable();
    assert_eq!((task.ops(), ToyMmu.preempt_count()), (vec![], 0));
}

#[test]
fn xen_in_an_interrupt() {
    let task = Task::new(XenPv::<X1>::new(ToyMmu));
    task.enable().set(1, 1);
    ToyMmu.irq_enter();
    task.set(2, 1);
    assert_eq!((task.ops(), raw(1), raw(2)), (vec![Hypercall(1)], 0, 1), "an update goes out at once");
    task.arch.flush_tlb();
    assert_eq!((task.ops().len(), raw(1)), (2, 1), "a flush takes with it what was queued before");
    ToyMmu.irq_exit();
    task.disable();
    assert_eq!(task.ops(), []);
}

/// A task that has not run yet.
fn new_task<F: Form>() -> LazyMmuState {
    if F::CPU_KNOWS { LazyMmuState::new() } else { LazyMmuState::switched_out() }
}

/// Two tasks on one CPU; the first is in a section, and the second opens one of its own, when the CPU is switched.
fn switched_in_a_section<F: Form>() -> Vec<String> {
    ToyMmu.reset();
    let arch = XenPv::<F>::new(ToyMmu);
    let tasks = [LazyMmuState::new(), new_task::<F>()];
    let switch = |from: usize, to: usize| {
        arch.start_context_switch(&tasks[from], ToyMmu.xen_task(from));
        ToyMmu.set_active(tasks[to].is_on());
        arch.end_context_switch(&tasks[to], ToyMmu.xen_task(to));
        ToyMmu.set_active(tasks[to].is_on());
    };
    let set = |addr: usize, value: usize| {
        // SAFETY: the machine's tables stay.
        unsafe { arch.set_pte(ToyMmu.pte(addr), value) };
    };
    tasks[0].lazy_mmu_mode_enable(&arch);
    ToyMmu.set_active(true);
    set(1, 1);
    switch(0, 1);
    assert_eq!(raw(1), 1, "nothing is left behind on the CPU");
    set(2, 1);
    assert_eq!(raw(2), 1, "the other task is in no section");
    switch(1, 0);
    set(1, 2);
    assert_eq!(raw(1), 1, "the first one is in its section again");
    tasks[0].lazy_mmu_mode_disable(&arch);
    ToyMmu.set_active(false);
    assert_eq!(raw(1), 2);
    ToyMmu.warnings()
}

#[test]
fn xen_leaves_nothing_behind_at_a_switch() {
    let nothing: [String; 0] = [];
    assert_eq!(switched_in_a_section::<X1>(), nothing);
    assert_eq!(switched_in_a_section::<X2>(), nothing);
    assert_eq!(switched_in_a_section::<X3>(), nothing);
    assert_eq!(switched_in_a_section::<X4>(), nothing);
    assert_eq!(switched_in_a_section::<X5>(), nothing);
}

/// By the hooks of May 2026 a task that has not run yet and is not paused never batches, and says so in a debug build.
#[test]
fn xen_x5_and_a_new_task_that_is_not_paused() {
    ToyMmu.reset();
    let arch = XenPv::<X5>::new(ToyMmu);
    let (parent, child) = (LazyMmuState::new(), LazyMmuState::new());
    arch.start_context_switch(&parent, ToyMmu.xen_task(0));
    arch.end_context_switch(&child, ToyMmu.xen_task(1));
    assert_eq!(ToyMmu.warnings(), ["resume without pause"]);
    child.lazy_mmu_mode_enable(&arch);
    assert!(!child.is_lazy_mmu_mode_active(&arch));
}

/// The CPU is taken between the counter and the callback: 7.0's hooks enter, and then the task does (the report of February 2026).
#[test]
fn xen_between_the_counter_and_the_callback() {
    fn preempted<F: Form>() -> Vec<String> {
        ToyMmu.reset();
        let arch = XenPv::<F>::new(ToyMmu);
        let (task, other) = (LazyMmuState::new(), new_task::<F>());
        // What the task has counted, and not told the architecture yet: the counter is the other one's word by now.
        struct NotYet<'a, F: Form>(&'a XenPv<F>, &'a LazyMmuState, &'a LazyMmuState);
        impl<F: Form> LazyMmuArch for NotYet<'_, F> {
            type Ptes = ();
            fn in_interrupt(&self) -> bool {
                false
            }
            fn arch_enter_lazy_mmu_mode(&self) {
                let NotYet(arch, task, other) = self;
                arch.start_context_switch(*task, ToyMmu.xen_task(0));
                arch.end_context_switch(*other, ToyMmu.xen_task(1));
                arch.start_context_switch(*other, ToyMmu.xen_task(1));
                arch.end_context_switch(*task, ToyMmu.xen_task(0));
                arch.arch_enter_lazy_mmu_mode();
            }
            fn arch_leave_lazy_mmu_mode(&self) {}
            fn arch_flush_lazy_mmu_mode(&self) {}
        }
        task.lazy_mmu_mode_enable(&NotYet(&arch, &task, &other));
        ToyMmu.warnings()
    }
    let nothing: [String; 0] = [];
    assert_eq!(preempted::<X1>(), nothing);
    assert_eq!(preempted::<X3>(), ["BUG: entered while in the mode"]);
    assert_eq!(preempted::<X4>(), nothing);
    assert_eq!(preempted::<X5>(), nothing);
}

/// Nested sections of the hooks alone, as set_ptes opened them in 2023.
#[test]
fn xen_and_nested_sections_of_the_hooks() {
    fn nested<F: Form>() -> Vec<String> {
        ToyMmu.reset();
        let arch = XenPv::<F>::new(ToyMmu);
        arch.arch_enter_lazy_mmu_mode();
        arch.arch_enter_lazy_mmu_mode();
        arch.arch_leave_lazy_mmu_mode();
        arch.arch_leave_lazy_mmu_mode();
        ToyMmu.warnings()
    }
    assert_eq!(nested::<X1>(), ["BUG: entered while in the mode", "BUG: left while not in the mode"]);
    assert!(nested::<X2>().is_empty());
    // But a switch takes one level back only, and the next task finds the CPU in the mode.
    ToyMmu.reset();
    let arch = XenPv::<X2>::new(ToyMmu);
    arch.arch_enter_lazy_mmu_mode();
    arch.arch_enter_lazy_mmu_mode();
    arch.start_context_switch(&LazyMmuState::new(), ToyMmu.xen_task(0));
    assert_eq!(ToyMmu.warnings(), ["BUG: entered while in the mode"]);
}

#[test]
fn s390_invalidates_rows_of_what_was_named() {
    let task = Task::new(S390(ToyMmu) as Z);
    task.set(1, 1);
    assert_eq!(task.ops(), [], "what is not valid needs no invalidation");
    task.set(1, 2);
    assert_eq!((task.ops(), raw(1)), (vec![Ipte(1)], 2));
    let named = |addrs| ToyMmu.range(addrs).unwrap();
    let enable = |addrs| task.call(|state, arch| state.lazy_mmu_mode_enable_with_ptes(arch, named(addrs)));
    task.set_all(2..8, 1);
    enable(0..8).set(1, 3).set(2, 3).set(4, 3).set(0, 3).set(6, 0);
    assert_eq!((task.get(1), raw(1), task.ops()), (3, 2, vec![]), "only the accessor knows");
    // SAFETY: the machine's tables stay.
    assert_eq!(unsafe { task.arch.ptep_get_lockless(ToyMmu.pte(1)) }, 2);
    task.set(9, 1).set(9, 2);
    assert_eq!((task.ops(), raw(9)), (vec![Ipte(1)], 2), "what was not named is changed at once");
    task.disable();
    // Entry 0 was not valid; 1 and 2 are a row; 3 was not touched; 4, then 6.
    assert_eq!(task.ops(), [Ipte(2), Ipte(1), Ipte(1)]);
    assert_eq!((0..8).map(raw).collect::<Vec<_>>(), [3, 3, 3, 1, 3, 1, 0, 1]);
    assert_eq!(ToyMmu.preempt_count(), 0);
}

/// Whatever enters the mode again without a leave in between, each section's changes go where it said.
#[test]
fn s390_keeps_what_is_cached_to_its_own_entries() {
    let task = Task::new(S390(ToyMmu) as Z);
    let enable = |addrs| {
        let named = ToyMmu.range(addrs).unwrap();
        task.call(|state, arch| state.lazy_mmu_mode_enable_with_ptes(arch, named));
    };
    enable(0..4);
    task.set_all(0..4, 3);
    // Another state on the same CPU.
    let named = ToyMmu.range(4..5).unwrap();
    let other = LazyMmuState::new();
    other.lazy_mmu_mode_enable_with_ptes(&task.arch, named);
    other.lazy_mmu_mode_disable(&task.arch);
    assert_eq!((0..8).map(raw).collect::<Vec<_>>(), [3, 3, 3, 3, 0, 0, 0, 0]);
    task.disable();

    enable(0..4);
    task.set_all(0..4, 5);
    for _ in 0..255 {
        task.enable();
    }
    enable(4..5);
    task.disable();
    assert_eq!((0..8).map(raw).collect::<Vec<_>>(), [5, 5, 5, 5, 0, 0, 0, 0], "the count has wrapped");
}

#[test]
fn s390_forgets_what_was_named_in_a_pause_unless_asked_not_to() {
    let task = Task::new(S390(ToyMmu) as Z);
    task.set_all(0..8, 1);
    let named = ToyMmu.range(0..8).unwrap();
    task.call(|state, arch| state.lazy_mmu_mode_enable_with_ptes(arch, named)).set(1, 2).pause();
    assert_eq!((raw(1), task.ops()), (2, vec![Ipte(1)]));
    task.resume().set(2, 2);
    assert_eq!((raw(2), task.ops()), (2, vec![Ipte(1)]), "right, and not cached");
    task.disable();

    let section = task.state.lazy_mmu_mode_enable_level(&task.arch, named);
    let pause = task.state.lazy_mmu_mode_pause_level(&task.arch);
    task.state.lazy_mmu_mode_resume_level(&task.arch, pause);
    task.set(3, 2);
    assert_eq!((raw(3), task.get(3)), (1, 2), "cached");
    // An inner section on another table, as fork's copy fills one.
    let inner = task.state.lazy_mmu_mode_enable_level(&task.arch, ToyMmu.range(256..264).unwrap());
    assert_eq!(raw(3), 2);
    task.set(256, 5);
    assert_eq!(raw(256), 0);
    task.state.lazy_mmu_mode_disable_level(&task.arch, inner);
    task.set(4, 2);
    assert_eq!((raw(256), raw(4)), (5, 1), "the outer section's entries are cached again");
    task.state.lazy_mmu_mode_disable_level(&task.arch, section);
    assert_eq!((raw(4), ToyMmu.preempt_count()), (2, 0));
}

#[test]
fn accessors_change_what_they_say() {
    fn all<B: PteAccess<Kernel = ToyMmu>>(arch: B) {
        let task = Task::new(arch);
        let pte = ToyMmu.pte(1);
        task.set(1, 1 | YOUNG | WRITE);
        // SAFETY: the machine's tables stay, here and below.
        assert!(unsafe { task.arch.ptep_test_and_clear_young(pte) });
        // SAFETY: as above.
        assert!(!unsafe { task.arch.ptep_test_and_clear_young(pte) });
        // SAFETY: as above.
        unsafe { task.arch.ptep_set_wrprotect(pte) };
        assert_eq!(task.get(1), 1);
        // SAFETY: as above.
        let value = unsafe { task.arch.ptep_modify_prot_start(pte) };
        // SAFETY: as above.
        unsafe { task.arch.ptep_modify_prot_commit(pte, value | WRITE) };
        // SAFETY: as above.
        assert_eq!(unsafe { task.arch.ptep_get_and_clear(pte) }, 1 | WRITE);
        assert_eq!(task.get(1), ToyMmu::PTE_NONE);
    }
    all(Arm64(ToyMmu));
    all(PowerpcHash(ToyMmu) as Powerpc);
    all(Sparc64(ToyMmu) as Sparc);
    all(XenPv::<X5>::new(ToyMmu));
    all(S390(ToyMmu) as Z);
}

#[test]
fn xen_changes_protection_in_the_queue_and_keeps_what_hardware_sets_meanwhile() {
    let task = Task::new(XenPv::<X5>::new(ToyMmu));
    let pte = ToyMmu.pte(1);
    task.set(1, 1 | WRITE);
    task.enable();
    // SAFETY: the machine's tables stay, here and below.
    let value = unsafe { task.arch.ptep_modify_prot_start(pte) };
    // SAFETY: as above.
    unsafe { pte.store(value | DIRTY) };
    // SAFETY: as above.
    unsafe { task.arch.ptep_modify_prot_commit(pte, value & !WRITE) };
    assert_eq!(raw(1), 1 | WRITE | DIRTY, "queued");
    task.disable();
    assert_eq!(raw(1), 1 | DIRTY);
}

#[test]
fn xen_takes_away_at_once_what_is_taken_by_an_instruction() {
    let task = Task::new(XenPv::<X5>::new(ToyMmu));
    task.set(1, 1 | YOUNG | WRITE).set(2, 1).enable().set(2, 2);
    task.ops();
    // SAFETY: the machine's tables stay, here and below.
    unsafe { task.arch.ptep_set_wrprotect(ToyMmu.pte(1)) };
    // SAFETY: as above.
    assert_eq!(unsafe { task.arch.ptep_get_and_clear(ToyMmu.pte(2)) }, 1, "and so it does not see what is queued");
    assert_eq!((raw(1), raw(2), task.ops()), (1 | YOUNG, 0, vec![]));
    task.disable();
    assert_eq!(raw(2), 2, "nor does what is queued see it");
}

#[test]
fn sparc64_batches_nothing_of_an_address_space_that_goes_as_a_whole() {
    let task = Task::new(Sparc64(ToyMmu) as Sparc);
    task.set_all(0..3, 1);
    task.enable();
    for addr in 0..3 {
        // SAFETY: the machine's tables stay.
        assert_eq!(unsafe { task.arch.ptep_get_and_clear_full(ToyMmu.pte(addr)) }, 1);
    }
    task.disable();
    assert_eq!(task.ops(), []);
}

/// A call of a random program.
#[derive(Clone, Copy, Debug)]
enum Call {
    Set(usize, usize),
    Get(usize),
    Enable,
    Disable,
    Pause,
    Resume,
}

fn programs() -> impl Strategy<Value = Vec<Call>> {
    let addr = || prop::sample::select(vec![0_usize, 1, 2, 3, 7, 255, 256, 300]);
    let call = prop_oneof![
        4 => (addr(), 0_usize..4).prop_map(|(addr, value)| Call::Set(addr, value)),
        2 => addr().prop_map(Call::Get),
        2 => Just(Call::Enable),
        2 => Just(Call::Disable),
        1 => Just(Call::Pause),
        1 => Just(Call::Resume),
    ];
    prop::collection::vec(call, 0..60)
}

/// Against a plain map: what is in force behind each end of a section, and in a pause, is all that was set; what a section reads
/// of its own is the last value if the back end can tell.
fn holds<B: PteAccess<Kernel = ToyMmu>>(arch: B, program: &[Call], reads_own: bool, enable: fn(&Task<B>) -> &Task<B>) {
    let task = Task::new(arch);
    let mut expected = std::collections::BTreeMap::new();
    let (mut sections, mut pauses) = (0, 0);
    for &call in program {
        match call {
            Call::Set(addr, value) => {
                task.set(addr, value);
                expected.insert(addr, value);
            }
            Call::Get(addr) if reads_own => {
                assert_eq!(task.get(addr), expected.get(&addr).copied().unwrap_or(0));
            }
            Call::Enable => {
                enable(&task);
                sections += usize::from(pauses == 0);
            }
            Call::Disable if pauses > 0 => {
                task.disable();
            }
            Call::Disable if sections > 0 => {
                task.disable();
                sections -= 1;
            }
            Call::Pause => {
                task.pause();
                pauses += 1;
            }
            Call::Resume if pauses > 0 => {
                task.resume();
                pauses -= 1;
            }
            Call::Get(_) | Call::Disable | Call::Resume => continue,
        }
        let is_in_force = matches!(call, Call::Disable) && pauses == 0 || pauses > 0 || sections == 0;
        if is_in_force {
            for (&addr, &value) in &expected {
                assert_eq!(raw(addr), value, "{addr} behind {call:?}");
            }
        }
    }
    for _ in 0..pauses {
        task.resume();
    }
    for _ in 0..sections {
        task.disable();
    }
    assert_eq!(ToyMmu.preempt_count(), 0);
    assert_eq!(ToyMmu.warnings(), [""; 0]);
}

proptest! {
    #[test]
    fn nothing_is_lost_or_late(program in programs()) {
        holds(Arm64(ToyMmu), &program, true, Task::enable);
        holds(PowerpcHash(ToyMmu) as Powerpc, &program, true, Task::enable);
        holds(Sparc64(ToyMmu) as Sparc, &program, true, Task::enable);
        holds(XenPv::<X1>::new(ToyMmu), &program, false, Task::enable);
        holds(XenPv::<X3>::new(ToyMmu), &program, false, Task::enable);
        holds(XenPv::<X4>::new(ToyMmu), &program, false, Task::enable);
        holds(XenPv::<X5>::new(ToyMmu), &program, false, Task::enable);
        holds(S390(ToyMmu) as Z, &program, true, |task| {
            let named = ToyMmu.range(0..4).unwrap();
            task.call(|state, arch| state.lazy_mmu_mode_enable_with_ptes(arch, named))
        });
    }
}
