//! Programs: what each task does, and what may happen to it.

/// One step of a task's script. Numbers are indices into the program's lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Statement {
    /// A section begins.
    Enable,
    /// A section begins that names the entries from one to another.
    EnableWithPtes(usize, usize),
    /// It ends.
    Disable,
    /// A pause begins.
    Pause,
    /// It ends.
    Resume,
    /// The architecture makes what is deferred take effect.
    Flush,
    /// An entry is set to map a page.
    Set(usize, usize),
    /// An entry is cleared.
    Clear(usize),
    /// An entry is cleared, of an address space that goes as a whole.
    ClearFull(usize),
    /// An entry is read by the accessor, and the page that it maps is in the task's hand; none if it maps none.
    Look(usize),
    /// An entry is set to map a page if the task has no page in its hand from its last look; else the page is in its hand.
    SetIfNone(usize, usize),
    /// An entry is changed to map a page by a transaction: it is read and cleared, then stored.
    Protect(usize, usize),
    /// The same by a read and a store, which may lose what hardware writes into the entry in between.
    ProtectByStore(usize, usize),
    /// An entry is made old: its accessed bit is cleared.
    Age(usize),
    /// The same by a read and a store.
    AgeByStore(usize),
    /// An entry is set to map a page if it maps none; else the page is in the task's hand.
    Install(usize, usize),
    /// An entry is cleared, and the page that it mapped is in the task's hand.
    Remove(usize),
    /// The page in the task's hand is freed, if there is one.
    Free,
    /// An entry is read by the back end's accessor.
    Read(usize),
    /// An entry is read past it.
    ReadRaw(usize),
    /// An entry is read as who walks tables without their lock reads it.
    ReadLockless(usize),
    /// The task writes through an entry's translation.
    Touch(usize),
    /// The same; where nothing is mapped the access faults, and is done again when something is.
    TouchRetrying(usize),
    /// All translations are taken out of the TLBs.
    FlushTlb,
    /// The task is about to change the entries from one to another: those who mirror them are told.
    Start(usize, usize),
    /// It has changed them.
    End,
    /// The TLBs of devices that walk the same tables are flushed of an entry.
    FlushSecondary(usize),
    /// A device uses an entry; its driver maps it before, if it has tables of its own.
    Use(usize, usize),
    /// A spinlock is taken; preemption is off while it is held.
    Lock(usize),
    /// It is released.
    Unlock(usize),
    /// The task may sleep here.
    Sleep,
    /// The architecture's own code may sleep here.
    SleepInArch,
    /// Bottom halves are disabled.
    BhDisable,
    /// They are enabled again.
    BhEnable,
    /// The task goes back to user mode.
    SyscallExit,
    /// From here on an interrupt of the CPU that the task is on now may come, once.
    Interrupt(Source, InInterrupt),
}

/// Where the code of an interrupt runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// In the hardware interrupt's handler.
    Irq,
    /// In a softirq on the way out of one.
    Softirq,
}

/// What an interrupt does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InInterrupt {
    /// An entry is set to map a page, in a section of the interrupt's own.
    Section(usize, usize),
    /// An entry is set to map a page.
    Set(usize, usize),
    /// An entry is read by the back end's accessor.
    Read(usize),
    /// The interrupt writes through an entry's translation.
    Touch(usize),
    /// The interrupt's code may sleep.
    Sleep,
}

/// A device that uses the page tables.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether it walks the CPUs' tables; else its driver mirrors them in its own.
    pub is_shared: bool,
}

/// Tasks that change entries of page tables.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Program {
    /// The name of the program.
    pub name: String,
    /// How many CPUs there are.
    pub cpus: usize,
    /// How often the timer may come. It takes the CPU from a task for one that waits, if one does.
    pub preemptions: usize,
    /// The tasks, by name. Those that do not wait run at the start, each on a CPU.
    pub tasks: Vec<String>,
    /// The tasks that wait for a CPU at the start.
    pub waiting: Vec<usize>,
    /// Each task's script.
    pub scripts: Vec<Vec<Statement>>,
    /// The entries, by name.
    pub ptes: Vec<String>,
    /// The table that each entry is in.
    pub tables: Vec<usize>,
    /// The pages, by name.
    pub pages: Vec<String>,
    /// What is mapped at the start: entries and pages.
    pub mapped: Vec<(usize, usize)>,
    /// The devices.
    pub devices: Vec<Device>,
    /// The spinlocks, by name.
    pub locks: Vec<String>,
    /// The lock that guards each entry, if one does.
    pub guards: Vec<Option<usize>>,
    /// Whether entries may only be changed with their lock held.
    pub guarded: bool,
    /// How often an execution may ask hardware for barriers, or to invalidate entries in memory.
    pub at_most: Option<usize>,
}

impl Program {
    /// The tasks that run at the start, in the order of their CPUs.
    pub fn first(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.tasks.len()).filter(|task| !self.waiting.contains(task))
    }

    /// Whether an entry maps the same page all the time, so that what it tells of the page is of all that was written through it.
    pub(crate) fn keeps_its_page(&self, entry: usize) -> bool {
        use Statement::*;
        let Some(&(_, mapped)) = self.mapped.iter().find(|(one, _)| *one == entry) else { return false };
        self.scripts.iter().flatten().all(|statement| match *statement {
            Clear(one) | ClearFull(one) | Remove(one) => one != entry,
            Set(one, _) | SetIfNone(one, _) | Install(one, _) => one != entry,
            Protect(one, page) | ProtectByStore(one, page) => one != entry || page == mapped,
            Interrupt(_, InInterrupt::Section(one, _) | InInterrupt::Set(one, _)) => one != entry,
            _ => true,
        })
    }

    /// The number of a CPU's idle task.
    pub fn idle(&self, cpu: usize) -> usize {
        self.tasks.len() + cpu
    }

    /// The interrupts of all scripts: each has the vector of its place in this list, from 1.
    pub fn interrupts(&self) -> Vec<(Source, InInterrupt)> {
        let interrupt = |statement: &Statement| match *statement {
            Statement::Interrupt(source, what) => Some((source, what)),
            _ => None,
        };
        self.scripts.iter().flatten().filter_map(interrupt).collect()
    }

    /// A statement as the language has it.
    pub fn text_of(&self, statement: Statement) -> String {
        use Statement::*;
        let (pte, page, lock) =
            (|pte: usize| &self.ptes[pte], |page: usize| &self.pages[page], |lock: usize| &self.locks[lock]);
        match statement {
            Enable => "enable".into(),
            EnableWithPtes(first, last) => format!("enable {} {}", pte(first), pte(last)),
            Disable => "disable".into(),
            Pause => "pause".into(),
            Resume => "resume".into(),
            Flush => "flush".into(),
            Set(at, to) => format!("set {} {}", pte(at), page(to)),
            Clear(at) => format!("clear {}", pte(at)),
            ClearFull(at) => format!("clear {} full", pte(at)),
            Look(at) => format!("look {}", pte(at)),
            SetIfNone(at, to) => format!("set {} {} if-none", pte(at), page(to)),
            Protect(at, to) => format!("protect {} {}", pte(at), page(to)),
            ProtectByStore(at, to) => format!("protect {} {} by-store", pte(at), page(to)),
            Age(at) => format!("age {}", pte(at)),
            AgeByStore(at) => format!("age {} by-store", pte(at)),
            Install(at, to) => format!("install {} {}", pte(at), page(to)),
            Remove(at) => format!("remove {}", pte(at)),
            Free => "free".into(),
            Read(at) => format!("read {}", pte(at)),
            ReadRaw(at) => format!("read {} raw", pte(at)),
            ReadLockless(at) => format!("read {} lockless", pte(at)),
            Touch(at) => format!("touch {}", pte(at)),
            TouchRetrying(at) => format!("touch {} retrying", pte(at)),
            FlushTlb => "flush-tlb".into(),
            Start(first, last) => format!("start {} {}", pte(first), pte(last)),
            End => "end".into(),
            FlushSecondary(at) => format!("flush-secondary {}", pte(at)),
            Use(device, at) => format!("use {} {}", self.devices[device].name, pte(at)),
            Lock(one) => format!("lock {}", lock(one)),
            Unlock(one) => format!("unlock {}", lock(one)),
            Sleep => "sleep".into(),
            SleepInArch => "sleep in-arch".into(),
            BhDisable => "bh-disable".into(),
            BhEnable => "bh-enable".into(),
            SyscallExit => "syscall-exit".into(),
            Interrupt(source, what) => {
                let source = if source == Source::Irq { "irq" } else { "softirq" };
                match what {
                    InInterrupt::Section(at, to) => format!("{source} section {} {}", pte(at), page(to)),
                    InInterrupt::Set(at, to) => format!("{source} set {} {}", pte(at), page(to)),
                    InInterrupt::Read(at) => format!("{source} read {}", pte(at)),
                    InInterrupt::Touch(at) => format!("{source} touch {}", pte(at)),
                    InInterrupt::Sleep => format!("{source} sleep"),
                }
            }
        }
    }
}
