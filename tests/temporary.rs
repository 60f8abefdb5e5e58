//! Temporary page tables, the NMI's check, `leave_mm` and membarrier, natively: what is loaded when, and what is told.

use lazytlb::core::mm_switch::{BroadcastFlush, IpiFlush};
use lazytlb::{HazardConvert, HazardIpi, LazyTlb, NoLazy, Platform, Refcount, Shootdown, Warning};
use lazytlb_toy::{Free, INIT_ROOT, Machine, Toy, on_cpu};

type Broadcast = Toy<2, 1, BroadcastFlush>;
type X86 = Toy<2, 1, IpiFlush>;

const A: usize = 0xa000;
const T: usize = 0x7000;

fn borrower<Arch, S>(strategy: S)
where
    Toy<2, 1, Arch>: Platform<MmData = Free>,
    S: LazyTlb<Toy<2, 1, Arch>>,
{
    let machine = Machine::boot(Toy::NEW, strategy);
    let temporary = machine.mm(T);
    let user = machine.user(machine.mm(A));
    let kthread = machine.kthread();
    on_cpu(0, || {
        machine.switch(machine.idle[0], user);
        machine.switch(user, kthread);
        // SAFETY: the only thread of this test is CPU 0, and nothing preempts it.
        unsafe { machine.switcher.use_temporary_mm(&temporary) };
        assert_eq!(machine.root(0), T);
        // The borrow is over for the scheduler, so that nobody has a reason to evict this CPU.
        machine.irqs_off(|irqs_off| assert!(machine.switcher.is_active_mm(irqs_off, machine.switcher.init_mm())));
        // SAFETY: `kthread` runs.
        assert!(!unsafe { machine.switcher.nmi_access_okay(kthread) }, "a kernel thread has no user memory");
        // SAFETY: it is what was loaded.
        unsafe { machine.switcher.unuse_temporary_mm(&temporary) };
        assert_eq!(machine.root(0), INIT_ROOT);
        machine.switch(kthread, user);
        assert_eq!(machine.root(0), A);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(user) };
        machine.irqs_off(|irqs_off| machine.switcher.leave_mm(irqs_off));
        assert_eq!(machine.root(0), INIT_ROOT);
        // What the borrow owned waits for the tail of a switch.
        machine.switch(user, machine.idle[0]);
    });
    assert_eq!(machine.freed(), [A]);
    assert_eq!(machine.warnings(), []);
}

#[test]
fn a_borrow_ends_before_temporary_tables_are_loaded() {
    borrower::<BroadcastFlush, _>(NoLazy);
    borrower::<BroadcastFlush, _>(Refcount);
    borrower::<BroadcastFlush, _>(Shootdown { debug_shoot_lazies: true });
    borrower::<BroadcastFlush, _>(HazardConvert::new());
    borrower::<BroadcastFlush, _>(HazardIpi::new());
    borrower::<IpiFlush, _>(Refcount);
    borrower::<IpiFlush, _>(HazardConvert::new());
}

#[test]
fn a_user_task_is_put_back_on_its_own_tables() {
    let machine = Machine::boot(X86::NEW, HazardConvert::new());
    let temporary = machine.mm(T);
    let user = machine.user(machine.mm(A));
    on_cpu(0, || {
        machine.switch(machine.idle[0], user);
        // SAFETY: `user` runs.
        let okay = || unsafe { machine.switcher.nmi_access_okay(user) };
        assert!(okay());
        let seen = machine.irqs_off(|irqs_off| {
            machine.switcher.with_temporary_mm(irqs_off, &temporary, |_| (machine.root(0), okay()))
        });
        assert_eq!(seen, (T, false), "the hardware is not on the task's own");
        assert_eq!((machine.root(0), okay()), (A, true));
    });
}

#[test]
fn a_panic_does_not_leave_temporary_tables_behind() {
    let machine = Machine::boot(Broadcast::NEW, Refcount);
    let temporary = machine.mm(T);
    on_cpu(0, || {
        let panics = || {
            machine.irqs_off(|irqs_off| {
                machine.switcher.with_temporary_mm(irqs_off, &temporary, |_| panic!("on purpose"))
            });
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
        assert_eq!(machine.root(0), INIT_ROOT);
    });
}

#[test]
fn sections_do_not_nest() {
    let machine = Machine::boot(Broadcast::NEW, Refcount);
    let (outer, inner) = (machine.mm(T), machine.mm(0x8000));
    on_cpu(0, || {
        machine.irqs_off(|irqs_off| {
            machine.switcher.with_temporary_mm(irqs_off, &outer, |irqs_off| {
                machine.switcher.with_temporary_mm(irqs_off, &inner, |_| {});
            });
        });
    });
    assert_eq!(machine.warnings(), [Warning::TemporaryNested]);
}

/// Who runs a user of an mm is told by a word of its CPU, through switches, exit, exec, and adoption.
#[test]
fn what_a_cpu_runs_can_be_read_from_afar() {
    let machine = Machine::boot(Broadcast::NEW, HazardConvert::new());
    let a = machine.mm(A);
    let user = machine.user(a.clone());
    let kthread = machine.kthread();
    let runs = |mm: &lazytlb::Mm<Broadcast, _>| {
        machine.switcher.cpu(lazytlb::CpuId::new(0)).curr_mm() == Some(lazytlb::core::MmPtr::from(mm.core()))
    };
    on_cpu(0, || {
        machine.switch(machine.idle[0], user);
        assert!(runs(&a));
        machine.switch(user, kthread);
        assert!(!runs(&a));
        // SAFETY: it runs, and `a` keeps its user.
        unsafe { machine.switcher.kthread_use_mm(kthread, &a) };
        assert!(runs(&a), "a kernel thread that has adopted the mm counts");
        // SAFETY: it runs.
        unsafe { machine.switcher.kthread_unuse_mm(kthread) };
        assert!(!runs(&a));
        machine.switch(kthread, user);
        let b = machine.mm(0xb000);
        // SAFETY: it runs.
        unsafe { machine.switcher.exec_mmap(user, b.clone()) };
        assert!(runs(&b) && !runs(&a));
        // No other CPU runs it: nobody is interrupted.
        machine.switcher.membarrier(&b);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(user) };
        assert!(!runs(&b));
    });
    assert_eq!(machine.warnings(), []);
}
