//! Every path of the switch path (P1 to P15), natively, under every strategy, on both flush rules, one CPU after the
//! other: who is freed when, what each CPU has loaded, and that nothing leaks.
//!
//! A strategy is only run on the rule that meets its preconditions; the type system sees to that.

use lazytlb::core::mm_switch::{BroadcastFlush, FlushRange, IpiFlush};
use lazytlb::epoch::{EpochPinned, EpochQs};
use lazytlb::hazard::deadline::Collector;
use lazytlb::{
    AnyLazyTlb, CpuId, GeneralHazard, HazardConvert, HazardDeadline, HazardIpi, LazyTlb, NoLazy, Platform, Refcount,
    RefcountDeferred, RefcountPerCpu, Shootdown, ShootdownBatched,
};
use lazytlb_toy::{Free, HW, INIT_ROOT, Machine, Toy, on_cpu};

type Broadcast = Toy<2, 1, BroadcastFlush>;
type X86 = Toy<2, 1, IpiFlush>;

/// When the mm of an exited process may be freed while another CPU still borrows it.
#[derive(Clone, Copy, PartialEq)]
enum Frees {
    /// At the last reference, borrowers evicted or counted out.
    Promptly,
    /// When the last borrower switches away, or the worker has come round.
    AfterBorrowers,
}

/// The scenario of the whole library: CPU 1 borrows A from a thread that slept there; CPU 0 runs the last thread of A,
/// which exits; then CPU 1 goes on to B.
fn exit_while_borrowed<Arch, S>(strategy: S, frees: Frees)
where
    Toy<2, 1, Arch>: Platform<MmData = Free>,
    S: LazyTlb<Toy<2, 1, Arch>>,
{
    let machine = Machine::boot(Toy::NEW, strategy);
    let a = machine.mm(0xa000);
    let (first, second) = (machine.user(a.clone()), machine.user(a));
    let other = machine.user(machine.mm(0xb000));
    let lazy = machine.switcher.strategy().borrows();

    on_cpu(1, || machine.switch(machine.idle[1], second));
    assert_eq!(machine.root(1), 0xa000);
    // P1, P2: the tables stay loaded.
    let kthread = machine.kthread();
    on_cpu(1, || {
        machine.switch(second, machine.idle[1]);
        machine.switch(machine.idle[1], kthread);
    });
    assert_eq!(machine.root(1), if lazy { 0xa000 } else { INIT_ROOT });
    // P3: back to the same user, and away again.
    on_cpu(1, || {
        machine.switch(kthread, second);
        machine.switch(second, machine.idle[1]);
    });

    // The sleeping thread is reaped elsewhere: it runs on CPU 0 and exits, as does the first one.
    on_cpu(0, || {
        machine.switch(machine.idle[0], second);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(second) };
        machine.switch(second, first);
        assert_eq!(machine.freed(), []);
        // P6, P7, and P8 for those who free at once.
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(first) };
        machine.switch(first, machine.idle[0]);
    });

    let freed = if frees == Frees::Promptly || !lazy { vec![0xa000] } else { vec![] };
    assert_eq!(machine.freed(), freed, "after the last exit");
    if !freed.is_empty() {
        assert_eq!(machine.root(1), INIT_ROOT, "nobody is on a freed root");
    }
    on_cpu(0, || machine.work(0));
    // P4: the borrower goes on; P5: user to user.
    on_cpu(1, || machine.switch(machine.idle[1], other));
    assert_eq!(machine.root(1), 0xb000);
    on_cpu(0, || machine.switch(machine.idle[0], machine.idle[0]));
    // CPU 0 borrows its own dying mm until it runs a user again.
    let third = machine.user(machine.mm(0xc000));
    on_cpu(0, || {
        machine.switch(machine.idle[0], third);
        machine.switch(third, other);
        machine.work(20);
    });
    assert_eq!(machine.freed(), [0xa000], "when all borrowers are gone");
    assert_eq!(machine.warnings(), []);
}

#[test]
fn an_exit_while_another_cpu_borrows() {
    exit_while_borrowed::<BroadcastFlush, _>(NoLazy, Frees::Promptly);
    exit_while_borrowed::<BroadcastFlush, _>(Refcount, Frees::AfterBorrowers);
    exit_while_borrowed::<BroadcastFlush, _>(RefcountPerCpu::new(), Frees::AfterBorrowers);
    exit_while_borrowed::<BroadcastFlush, _>(HazardConvert::new(), Frees::AfterBorrowers);
    exit_while_borrowed::<BroadcastFlush, _>(Shootdown { debug_shoot_lazies: true }, Frees::Promptly);
    exit_while_borrowed::<IpiFlush, _>(NoLazy, Frees::Promptly);
    exit_while_borrowed::<IpiFlush, _>(Refcount, Frees::AfterBorrowers);
    exit_while_borrowed::<IpiFlush, _>(RefcountPerCpu::new(), Frees::AfterBorrowers);
    exit_while_borrowed::<IpiFlush, _>(HazardConvert::new(), Frees::AfterBorrowers);
    exit_while_borrowed::<IpiFlush, _>(HazardIpi::new(), Frees::Promptly);
    for &strategy in AnyLazyTlb::ALL {
        let frees = match strategy {
            AnyLazyTlb::NoLazy(_)
            | AnyLazyTlb::Shootdown(_)
            | AnyLazyTlb::UsersOnly(_)
            | AnyLazyTlb::LazyFix(_)
            | AnyLazyTlb::HazardIpi(_) => Frees::Promptly,
            _ => Frees::AfterBorrowers,
        };
        exit_while_borrowed::<BroadcastFlush, _>(strategy, frees);
    }
}

/// x86's rule: the flush of the last mmput moves a lazy CPU's MMU and leaves `active_mm` alone (P15).
#[test]
fn the_flush_of_freed_tables_moves_the_mmu_and_not_the_pointer() {
    let machine = Machine::boot(X86::NEW, Refcount);
    let a = machine.mm(0xa000);
    let task = machine.user(a.clone());
    on_cpu(1, || {
        machine.switch(machine.idle[1], task);
        machine.switch(task, machine.idle[1]);
    });
    assert!(a.core().cpumask().test_cpu(lazytlb::CpuId::new(1), core::sync::atomic::Ordering::Relaxed));
    on_cpu(0, || machine.switcher.flush_tlb_mm_range(&a, FlushRange::All, true));
    assert_eq!(machine.root(1), INIT_ROOT);
    on_cpu(1, || machine.irqs_off(|irqs_off| assert_eq!(machine.switcher.active_mm(irqs_off).root().0, 0xa000)));
    assert_eq!(format!("{:?}", a.core().cpumask()), "{}");
    // Back to the same user: the scheduler sees no change of mm, the architecture loads the root again.
    on_cpu(1, || machine.switch(machine.idle[1], task));
    assert_eq!(machine.root(1), 0xa000);
}

fn kthread_paths<S: LazyTlb<Broadcast>>(strategy: S) {
    let machine = Machine::boot(Broadcast::NEW, strategy);
    let switcher = machine.switcher;
    let (a, b) = (machine.mm(0xa000), machine.mm(0xb000));
    let owner = machine.user(a.clone());
    let kthread = machine.kthread();
    on_cpu(0, || {
        machine.switch(machine.idle[0], owner);
        machine.switch(owner, kthread);
        // P11 and P12 on the very mm that is borrowed, then on another.
        for mm in [&a, &b] {
            // SAFETY: kthread runs, and `a` and `b` are held here.
            unsafe { switcher.kthread_use_mm(kthread, mm) };
            assert!(machine.owns(kthread, mm));
            assert_eq!(machine.root(0), mm.core().root().0);
            // SAFETY: it runs.
            unsafe { switcher.kthread_unuse_mm(kthread) };
            assert_eq!(kthread.mm(), None);
        }
        // P14: a kernel thread that borrows b becomes a user of c; then P13.
        // SAFETY: it runs.
        unsafe { switcher.exec_mmap(kthread, machine.mm(0xc000)) };
        assert_eq!(machine.root(0), 0xc000);
        // SAFETY: it runs.
        unsafe { switcher.exec_mmap(kthread, machine.mm(0xd000)) };
    });
    on_cpu(0, || machine.work(20));
    assert_eq!(machine.freed(), [0xc000], "exec drops the old mm");
    drop(b);
    on_cpu(0, || machine.work(20));
    assert_eq!(machine.freed(), [0xc000, 0xb000], "no borrow of b is left");
    assert_eq!((a.core().users(), a.core().count()), (2, 1), "the owner and this test; no borrow of a is left");
    assert_eq!(machine.warnings(), []);
}

#[test]
fn kernel_threads_adopt_give_back_and_exec() {
    kthread_paths(NoLazy);
    kthread_paths(Refcount);
    kthread_paths(RefcountPerCpu::new());
    kthread_paths(Shootdown { debug_shoot_lazies: true });
    kthread_paths(HazardConvert::new());
    AnyLazyTlb::ALL.iter().copied().for_each(kthread_paths);
}

fn hotplug<S: LazyTlb<Broadcast>>(strategy: S) {
    let machine = Machine::boot(Broadcast::NEW, strategy);
    let task = machine.user(machine.mm(0xa000));
    on_cpu(1, || {
        machine.switch(machine.idle[1], task);
        machine.switch(task, machine.idle[1]);
        // P9: evicted in the hotplug thread, then gone.
        machine.switcher.sched_cpu_wait_empty();
    });
    assert_eq!(machine.root(1), INIT_ROOT);
    HW.with(|hw| hw.offline.borrow_mut().push(1));
    on_cpu(0, || {
        machine.switch(machine.idle[0], task);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(task) };
        let next = machine.user(machine.mm(0xb000));
        machine.switch(task, next);
        machine.work(20);
    });
    assert_eq!(machine.freed(), [0xa000], "an offline CPU pins nothing and is not waited for");
    // P10.
    HW.with(|hw| hw.offline.borrow_mut().clear());
    // SAFETY: idle tasks are leaked.
    on_cpu(1, || machine.irqs_off(|irqs_off| unsafe { machine.switcher.sched_init(irqs_off, machine.idle[1]) }));
    assert_eq!(machine.root(1), INIT_ROOT);
    assert_eq!(machine.warnings(), []);
}

#[test]
fn a_cpu_goes_offline_and_comes_back() {
    hotplug(NoLazy);
    hotplug(Refcount);
    hotplug(RefcountPerCpu::new());
    hotplug(Shootdown::default());
    hotplug(HazardConvert::new());
    AnyLazyTlb::ALL.iter().copied().for_each(hotplug);
}

/// What a round costs on 4096 CPUs, four of which once ran the mm, and one of those still borrows it.
fn who_is_interrupted<S: LazyTlb<Toy<4096, 64>>>(strategy: S) -> usize {
    let machine = Machine::boot(Toy::<4096, 64>::NEW, strategy);
    let a = machine.mm(0xa000);
    for cpu in [1, 63, 64, 4095] {
        let task = machine.user(a.clone());
        on_cpu(cpu, || {
            machine.switch(machine.idle[cpu], task);
            // SAFETY: it runs.
            unsafe { machine.switcher.exit_mm(task) };
            machine.switch(task, machine.idle[cpu]);
            if cpu != 64 {
                machine.switch(machine.idle[cpu], machine.user(machine.mm(0xb000)));
            }
        });
    }
    on_cpu(7, || drop(a));
    assert_eq!(machine.freed(), [0xa000]);
    assert_eq!(machine.root(64), INIT_ROOT);
    HW.with(|hw| hw.ipis.get())
}

#[test]
fn shootdown_interrupts_the_mask_and_hazard_ipi_the_borrowers() {
    assert_eq!(who_is_interrupted(Shootdown::default()), 4);
    assert_eq!(who_is_interrupted(HazardIpi::new()), 1);
}

/// A CPU that goes idle on A, whose user then exits elsewhere: nobody but CPU 1 is on A, and it sleeps.
fn idle_borrower<S: LazyTlb<Broadcast>>(strategy: S) -> Machine<Broadcast, S> {
    let machine = Machine::boot(Broadcast::NEW, strategy);
    let task = machine.user(machine.mm(0xa000));
    on_cpu(1, || {
        machine.switch(machine.idle[1], task);
        machine.switch(task, machine.idle[1]);
    });
    on_cpu(0, || {
        machine.switch(machine.idle[0], task);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(task) };
        machine.switch(task, machine.idle[0]);
    });
    machine
}

#[test]
fn hazard_deadline_waits_and_then_interrupts() {
    let ipis = || HW.with(|hw| hw.ipis.get());
    for collector in [Collector::Tail, Collector::Worker] {
        let machine = idle_borrower(HazardDeadline { deadline: Some(5), collector });
        on_cpu(0, || machine.work(4));
        assert_eq!((machine.freed(), ipis()), (vec![], 0), "not before its time: {collector:?}");
        on_cpu(0, || machine.work(1));
        assert_eq!((machine.freed(), ipis()), (vec![0xa000], 1), "{collector:?}");
        assert_eq!(machine.root(1), INIT_ROOT);

        let machine = idle_borrower(HazardDeadline { deadline: Some(0), collector });
        assert_eq!((machine.freed(), ipis()), (vec![0xa000], 1), "at once: {collector:?}");

        // A time that is as far away as any is not over, wherever the clock is.
        for deadline in [usize::MAX, isize::MAX as usize + 1, isize::MAX as usize] {
            let machine = idle_borrower(HazardDeadline { deadline: Some(deadline), collector });
            on_cpu(0, || machine.work(1_000_000));
            assert_eq!((machine.freed(), ipis()), (vec![], 0), "in a long time: {collector:?}");
            on_cpu(0, || machine.work(isize::MAX as usize - 1_000_000));
            assert_eq!((machine.freed(), ipis()), (vec![0xa000], 1), "then: {collector:?}");
        }

        let machine = idle_borrower(HazardDeadline { deadline: None, collector });
        on_cpu(0, || machine.work(1_000_000));
        assert_eq!((machine.freed(), ipis()), (vec![], 0), "never: {collector:?}");
        let other = machine.user(machine.mm(0xb000));
        on_cpu(1, || machine.switch(machine.idle[1], other));
        on_cpu(0, || machine.work(0));
        assert_eq!((machine.freed(), ipis()), (vec![0xa000], 0), "when the CPU leaves by itself: {collector:?}");
        assert_eq!(machine.warnings(), []);
    }
}

/// Mms that die one after the other are waited for each in its time, whatever the order in which they are looked at.
#[test]
fn hazard_deadline_asks_for_the_worker_at_the_earliest_time() {
    let strategy = HazardDeadline { deadline: Some(5), collector: Collector::Tail };
    let machine = Machine::boot(Toy::<4, 1, BroadcastFlush>::NEW, strategy);
    for (cpu, root, ticks) in [(1, 0xa000, 3), (2, 0xb000, 1), (3, 0xc000, 0)] {
        let task = machine.user(machine.mm(root));
        on_cpu(cpu, || {
            machine.switch(machine.idle[cpu], task);
            machine.switch(task, machine.idle[cpu]);
        });
        on_cpu(0, || {
            machine.switch(machine.idle[0], task);
            // SAFETY: it runs.
            unsafe { machine.switcher.exit_mm(task) };
            machine.switch(task, machine.idle[0]);
            machine.work(ticks);
        });
    }
    for (ticks, freed) in
        [(1, vec![0xa000]), (2, vec![0xa000]), (1, vec![0xa000, 0xb000]), (1, vec![0xa000, 0xb000, 0xc000])]
    {
        on_cpu(0, || machine.work(ticks));
        assert_eq!(machine.freed(), freed);
    }
}

#[test]
fn hazard_deadline_leaves_isolated_cpus_alone() {
    let strategy = HazardDeadline { deadline: Some(0), collector: Collector::Tail };
    let machine = Machine::boot(Toy::<4, 1>::NEW, strategy);
    HW.with(|hw| hw.isolated.borrow_mut().push(1));
    let a = machine.mm(0xa000);
    for cpu in [1, 2] {
        let task = machine.user(a.clone());
        on_cpu(cpu, || {
            machine.switch(machine.idle[cpu], task);
            // SAFETY: it runs.
            unsafe { machine.switcher.exit_mm(task) };
            machine.switch(task, machine.idle[cpu]);
        });
    }
    on_cpu(0, || {
        drop(a);
        machine.work(1_000_000);
    });
    assert_eq!(HW.with(|hw| hw.ipis.get()), 1, "CPU 2 only");
    assert_eq!((machine.freed(), machine.root(1), machine.root(2)), (vec![], 0xa000, INIT_ROOT));
    let other = machine.user(machine.mm(0xb000));
    on_cpu(1, || machine.switch(machine.idle[1], other));
    assert_eq!((machine.freed(), machine.warnings()), (vec![0xa000], vec![]));
}

/// How many mms wait, and how many CPUs name a borrow in their slots.
fn waiting_and_named<const CPUS: usize>(machine: &Machine<Toy<CPUS, 1>, HazardDeadline>) -> (usize, usize) {
    // SAFETY: it is only read.
    let waiting = unsafe { machine.switcher.shared() }.len();
    let names = |&cpu: &usize| {
        // SAFETY: it is only read.
        unsafe { machine.switcher.cpu(CpuId::new(cpu)).strategy() }.lazy_mm().is_some()
    };
    (waiting, (0..CPUS).filter(names).count())
}

/// Mms whose last reference goes with preemption off, while nobody borrows anything.
#[test]
fn what_nobody_borrows_waits_for_the_worker_alone() {
    const DIE: usize = 50;
    for (collector, wait) in [(Collector::Tail, 0), (Collector::Worker, DIE)] {
        let machine = Machine::boot(Toy::<2, 1>::NEW, HazardDeadline { deadline: Some(5), collector });
        on_cpu(0, || {
            for each in 0..DIE {
                let mm = machine.mm(0x1000 * (each + 1));
                let reference = mm.mmgrab();
                drop(mm);
                machine.preempt_off(|| drop(reference));
            }
            assert_eq!(waiting_and_named(&machine), (wait, 0), "{collector:?}");
            machine.work(0);
        });
        assert_eq!((machine.freed().len(), waiting_and_named(&machine)), (DIE, (0, 0)), "{collector:?}");
        assert_eq!(machine.warnings(), []);
    }
}

/// The bound of `HazardDeadline`: whenever a look is over, no more mms wait than slots name one. CPUs borrow, mms die and time
/// goes on in an order that is as good as any.
#[test]
fn a_look_leaves_no_more_mms_waiting_than_slots_name() {
    const CPUS: usize = 4;
    // An interpreter is some thousand times slower.
    const STEPS: usize = if cfg!(miri) { 20 } else { 2000 };
    for (collector, deadline) in
        [(Collector::Tail, Some(5)), (Collector::Tail, None), (Collector::Worker, Some(5)), (Collector::Worker, None)]
    {
        let machine = Machine::boot(Toy::<CPUS, 1>::NEW, HazardDeadline { deadline, collector });
        let mut mms: Vec<_> = (1..=6).map(|each| machine.mm(0x1000 * each)).collect();
        let (mut state, mut most) = (1_u64, 0);
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        for step in 0..STEPS {
            let (cpu, mm, then) = (below(CPUS), below(6), below(8));
            on_cpu(cpu, || match then {
                // A thread of the mm exits here, and the CPU goes idle on it.
                0..4 => {
                    let task = machine.user(mms[mm].clone());
                    machine.switch(machine.idle[cpu], task);
                    // SAFETY: it runs.
                    unsafe { machine.switcher.exit_mm(task) };
                    machine.switch(task, machine.idle[cpu]);
                }
                // The mm dies, its last reference with preemption off or on.
                4..7 => {
                    let dies = core::mem::replace(&mut mms[mm], machine.mm(0x1000 * (step + 10)));
                    let reference = dies.mmgrab();
                    drop(dies);
                    if then == 4 { machine.preempt_off(|| drop(reference)) } else { drop(reference) }
                }
                _ => machine.work(2),
            });
            if collector == Collector::Worker {
                on_cpu(cpu, || machine.work(0));
            }
            let (waiting, named) = waiting_and_named(&machine);
            assert!(waiting <= named, "step {step}: {waiting} wait, {named} named: {collector:?} {deadline:?}");
            most = most.max(waiting);
        }
        assert!((most >= 2 || cfg!(miri)) && machine.warnings().is_empty(), "{collector:?} {deadline:?}: {most}");
    }
}

/// How many mms wait that died while one CPU slept on another, which they have nothing to do with.
fn waiting_for_a_sleeper<S: LazyTlb<Broadcast>>(strategy: S, deep: bool) -> usize {
    const DIE: usize = 50;
    let machine = Machine::boot(Broadcast::NEW, strategy);
    let sleeper = machine.user(machine.mm(0xa000));
    on_cpu(1, || {
        machine.switch(machine.idle[1], sleeper);
        machine.switch(sleeper, machine.idle[1]);
        if deep {
            machine.switcher.cpu_idle_enter();
        }
    });
    on_cpu(0, || (0..DIE).for_each(|each| drop(machine.mm(0x1000 * (each + 0x100)))));
    let waiting = DIE - machine.freed().len();
    on_cpu(1, || machine.switch(machine.idle[1], sleeper));
    assert_eq!(machine.freed().len(), DIE, "all are freed when it wakes");
    assert_eq!(machine.warnings(), []);
    waiting
}

#[test]
fn one_idle_cpu_stalls_epochs_and_not_slots() {
    assert_eq!(waiting_for_a_sleeper(HazardDeadline { deadline: None, collector: Collector::Tail }, false), 0);
    assert_eq!(waiting_for_a_sleeper(GeneralHazard::new(), false), 0);
    assert_eq!(waiting_for_a_sleeper(EpochQs { evict_at_idle: false }, true), 50);
    assert_eq!(waiting_for_a_sleeper(EpochPinned { evict_at_idle: false }, true), 50);
    assert_eq!(waiting_for_a_sleeper(EpochQs { evict_at_idle: true }, true), 0);
    assert_eq!(waiting_for_a_sleeper(EpochPinned { evict_at_idle: true }, true), 0);
}

#[test]
fn a_batch_is_shot_in_one_round() {
    let machine = Machine::boot(Toy::<4, 1>::NEW, ShootdownBatched { batch: 3, linger: 7 });
    let dies_borrowed = |cpu: usize| {
        let task = machine.user(machine.mm(0xa000 + cpu));
        on_cpu(cpu, || {
            machine.switch(machine.idle[cpu], task);
            // SAFETY: it runs.
            unsafe { machine.switcher.exit_mm(task) };
            machine.switch(task, machine.idle[cpu]);
        });
    };
    dies_borrowed(1);
    dies_borrowed(2);
    assert_eq!((machine.freed().len(), HW.with(|hw| hw.ipis.get())), (0, 0));
    dies_borrowed(3);
    assert_eq!(machine.freed().len(), 3);
    assert_eq!(HW.with(|hw| hw.ipis.get()), 2, "the others, once each");
    dies_borrowed(1);
    on_cpu(0, || machine.work(6));
    assert_eq!(machine.freed().len(), 3);
    on_cpu(0, || machine.work(1));
    assert_eq!((machine.freed().len(), machine.warnings()), (4, vec![]), "what is left over lingers so long");
}

#[test]
fn a_batch_lingers_as_long_as_the_clock_can_tell() {
    let machine = idle_borrower(ShootdownBatched { batch: 3, linger: usize::MAX });
    HW.with(|hw| assert_eq!(hw.work_at.get(), Some(isize::MAX as usize)));
    on_cpu(0, || machine.work(1_000_000));
    assert_eq!((machine.freed(), HW.with(|hw| hw.ipis.get())), (vec![], 0));
    on_cpu(0, || machine.work(isize::MAX as usize - 1_000_000));
    assert_eq!((machine.freed(), machine.warnings()), (vec![0xa000], vec![]));
}

#[test]
fn what_is_dropped_where_freeing_may_not_sleep_goes_to_the_worker() {
    let machine = idle_borrower(RefcountDeferred);
    let other = machine.user(machine.mm(0xb000));
    on_cpu(1, || machine.switch(machine.idle[1], other));
    on_cpu(0, || machine.switch(machine.idle[0], other));
    assert_eq!(machine.freed(), [], "the tail of a switch frees nothing");
    on_cpu(0, || machine.work(0));
    assert_eq!((machine.freed(), machine.warnings()), (vec![0xa000], vec![]));
    drop(machine.mm(0xc000));
    assert_eq!(machine.freed(), [0xa000, 0xc000], "process context frees at once");
}

#[test]
fn counts_that_go_below_zero_are_reported() {
    use lazytlb::core::platform::Warning;
    let machine = Machine::boot(Broadcast::NEW, Refcount);
    // SAFETY: not: the kernel thread never used an mm. The library says so instead of crashing.
    on_cpu(0, || unsafe { machine.switcher.kthread_unuse_mm(machine.idle[0]) });
    assert_eq!(machine.warnings(), [Warning::WrongTask]);
}
