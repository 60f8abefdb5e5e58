//! Who the tasks are that the trace finds running: kernel threads, and threads that share an address space.
//!
//! A `.tasks` file says so (a line each: number, thread group, 1 for a kernel thread, name); `/proc` gives it at the start
//! of a recording. Without one it is inferred: from the trace's thread-group column if it has one, from the names that
//! kernel threads have, and else each user task is taken to have an address space of its own.

use core::fmt;

use rustc_hash::FxHashMap;

use crate::event::Comm;

/// What is known of the tasks that were there at the start.
#[derive(Clone, Debug, Default)]
pub struct TasksFile {
    tasks: FxHashMap<u32, Told>,
}

/// What the file says of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) tgid: u32,
    pub(crate) kthread: bool,
}

/// A tasks file that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TasksError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: &'static str,
}

impl TasksError {
    /// The error with the name of the file before it.
    pub fn in_file(&self, file: &str) -> String {
        format!("{file}:{}:{}: {}", self.line, self.column, self.message)
    }
}

impl fmt::Display for TasksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl core::error::Error for TasksError {}

impl TasksFile {
    /// Reads one.
    ///
    /// # Errors
    /// With line and column, if a line is not `NUMBER GROUP 0|1 NAME`.
    pub fn parse(text: &[u8]) -> Result<TasksFile, TasksError> {
        let mut tasks = FxHashMap::default();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() || line.first() == Some(&b'#') {
                continue;
            }
            let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
            let mut number = || -> Result<u32, TasksError> {
                let word = words.next().unwrap_or(&line[line.len()..]);
                let column = word.as_ptr().addr() - line.as_ptr().addr() + 1;
                let wrong = TasksError { line: index + 1, column, message: "expected: NUMBER GROUP 0|1 NAME" };
                core::str::from_utf8(word).ok().and_then(|word| word.parse().ok()).ok_or(wrong)
            };
            let (pid, tgid, kthread) = (number()?, number()?, number()?);
            if kthread > 1 {
                let message = "the third word is 1 for a kernel thread and 0 for others";
                return Err(TasksError { line: index + 1, column: 1, message });
            }
            tasks.insert(pid, Told { tgid, kthread: kthread == 1 });
        }
        Ok(TasksFile { tasks })
    }

    pub(crate) fn get(&self, pid: u32) -> Option<Told> {
        self.tasks.get(&pid).copied()
    }
}

/// Whether a name is one that kernel threads have. A trace without a tasks file has nothing better.
pub(crate) fn has_kthread_name(comm: Comm) -> bool {
    const STARTS: [&[u8]; 33] = [
        b"kworker/",
        b"ksoftirqd/",
        b"migration/",
        b"cpuhp/",
        b"rcu_",
        b"rcuc/",
        b"rcub/",
        b"rcuog/",
        b"rcuop/",
        b"rcuo",
        b"idle_inject/",
        b"watchdog/",
        b"irq/",
        b"jbd2/",
        b"kswapd",
        b"kcompactd",
        b"khugepaged",
        b"khungtaskd",
        b"kdevtmpfs",
        b"kauditd",
        b"kthreadd",
        b"ksmd",
        b"kthrotld",
        b"kblockd",
        b"oom_reaper",
        b"writeback",
        b"scsi_eh_",
        b"nvme-",
        b"dmcrypt_",
        b"xfs-",
        b"xfsaild/",
        b"btrfs-",
        b"ext4-",
    ];
    let name = comm.as_bytes();
    STARTS.iter().any(|start| name.starts_with(start)) || name == b"pool_workqueue_"
}
