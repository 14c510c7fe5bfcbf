//! What the dispatcher is told, and what it says: events, actions, and the words in them.

use std::sync::Arc;
use std::time::Duration;

use super::Label;
use super::retry::{Retry, Rules};
use crate::protocol::{Done, Seq};

/// Names a task; unique in the process. Those submitted later have larger ones, but for threads that
/// overtake each other.
pub type TaskId = u64;
/// Names a connection of a daemon; unique in a dispatcher and increasing.
pub type PeerId = u32;
/// Index of a URL that is listened at, from 0.
pub type Endpoint = usize;
/// Time since an origin that the caller chooses and keeps.
pub type Time = Duration;

/// How tasks find their daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// One queue; each daemon holds one task at a time, or a few that are tiny.
    Queue,
    /// A queue per daemon, filled in turn.
    RoundRobin,
}

/// How a dispatcher works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How tasks are assigned.
    pub policy: Policy,
    /// For tasks without [`Rules`] that say otherwise.
    pub retry: Retry,
    /// A number by which the waits between attempts differ from those of another dispatcher.
    pub jitter: u64,
    /// Bytes that may wait in the queue; the caller asks [`Dispatcher::has_room`].
    pub capacity: Option<u64>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            policy: Policy::Queue,
            retry: Retry::default(),
            jitter: 0,
            capacity: None,
        }
    }
}

/// Where a task may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Wherever the policy says.
    Any,
    /// On this connection, ahead of what is not pinned there.
    Peer(PeerId),
    /// On the first connection at this endpoint, which may be there already.
    Endpoint(Endpoint),
    /// On a daemon that has not connected yet: 0 is the next one to connect, 1 the one after that.
    Join(u32),
}

/// Whether what a daemon has replied reaches the host even if the daemon dies right after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// On one machine: what has been written to a socket can be read to its end. Grants are of no use.
    Sure,
    /// Across the network.
    MayBeLost,
}

/// What happened.
#[derive(Debug)]
pub enum Event<J> {
    /// A new task. Its number is used once, and is best larger than all before it: the queue goes by it.
    Submit {
        /// Number of the task.
        id: TaskId,
        /// What stands for the task.
        job: J,
        /// Size of the payload, for the accounts.
        bytes: u64,
        /// When it times out, if ever.
        deadline: Option<Time>,
        /// Who may evaluate it.
        target: Target,
        /// For the log.
        label: Label,
        /// `None`: the default.
        rules: Option<Arc<Rules>>,
        /// It waits for others: see [`Event::Ready`].
        waits: bool,
    },
    /// What a task has waited for is there.
    Ready {
        /// Number of the task.
        id: TaskId,
        /// Size of the payload now.
        bytes: u64,
    },
    /// What a task waits for will not be there.
    Broken {
        /// Number of the task.
        id: TaskId,
    },
    /// A daemon connected and proved itself.
    Joined {
        /// Number of the connection.
        peer: PeerId,
        /// The endpoint at which it has connected.
        endpoint: Endpoint,
        /// Tasks that it may run at once, at least 1.
        slots: u32,
        /// What is known of replies when it is lost.
        replies: Replies,
    },
    /// A daemon has finished with a task, or skipped it, on which it has spent this time.
    Replied {
        /// Number of the connection.
        peer: PeerId,
        /// The task's number on the link.
        seq: Seq,
        /// How long the daemon was busy with it.
        spent: Duration,
        /// What came of it, for the log.
        reply: Reply,
    },
    /// The answer to [`Action::Recall`]: these have not been started and never will be there.
    Returned {
        /// Number of the connection.
        peer: PeerId,
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// A daemon is about to leave. It begins no further task.
    Leaving {
        /// Number of the connection.
        peer: PeerId,
        /// The last that has begun.
        begun: Seq,
    },
    /// The connection is gone.
    Lost {
        /// Number of the connection.
        peer: PeerId,
        /// Everything that the peer had sent has been read.
        heard_out: bool,
    },
    /// The endpoint has moved to another URL, and the connections there are closed: what
    /// they have started is not run again.
    Moved {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The user does not want this task any more.
    Cancel {
        /// Number of the task.
        id: TaskId,
    },
    /// Time has passed: see [`Dispatcher::next_deadline`].
    Tick,
    /// Nobody will connect at this endpoint.
    Abandoned {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// No daemon will connect. If none is connected, every task ends.
    NoneLeft,
    /// Every task ends. The links do, too: a daemon decides by itself whether to
    /// finish what it runs.
    Reset,
}

/// What a reply says, as far as the log needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What became of the task.
    pub outcome: Done,
    /// Size of the value.
    pub bytes: u64,
    /// Message of the error, shortened.
    pub error: Option<Box<str>>,
}

impl Default for Reply {
    /// A value of no bytes.
    fn default() -> Reply {
        Reply {
            outcome: Done::Value,
            bytes: 0,
            error: None,
        }
    }
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<J> {
    /// Send a task.
    Send {
        /// Number of the connection.
        peer: PeerId,
        /// The task's number on the link.
        seq: Seq,
        /// What stands for the task.
        job: J,
        /// Up to this one the daemon may begin what it has been sent: see [`Replies`].
        granted: Seq,
    },
    /// Tell the daemon that it may begin what it has been sent up to this one.
    Grant {
        /// Number of the connection.
        peer: PeerId,
        /// The last of them.
        to: Seq,
    },
    /// Tell the daemon that nobody waits for this task.
    Cancel {
        /// Number of the connection.
        peer: PeerId,
        /// The task's number on the link.
        seq: Seq,
    },
    /// Ask the daemon to give back those of these tasks that it has not started. It must be
    /// answered.
    Recall {
        /// Number of the connection.
        peer: PeerId,
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// Hang up: the daemon has nothing to do, and the task that it was started for is over.
    Dismiss {
        /// Number of the connection.
        peer: PeerId,
    },
    /// An attempt has failed, and there will be another: what the failed one has sent ahead is of no use.
    Again {
        /// What stands for the task.
        job: J,
    },
    /// The task is over. It is not mentioned again.
    Resolve {
        /// What stands for the task.
        job: J,
        /// What it resolves to.
        verdict: Verdict,
    },
    /// The queue has shrunk: see [`Dispatcher::has_room`].
    Room,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With the reply that the event was about.
    Replied,
    /// Its time was over.
    TimedOut,
    /// Its daemon was lost, or everything was reset.
    Reset,
    /// The URL at which its daemon was connected has been closed.
    Closed,
    /// It was cancelled.
    Canceled,
    /// What it has waited for has failed.
    Broken,
}

/// Numbers for `status()` and `info()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks that have not been sent to a daemon.
    pub awaiting: usize,
    /// Tasks that were sent and are not over.
    pub executing: usize,
    /// Tasks resolved so far, however they ended.
    pub completed: u64,
    /// Daemons that are connected now.
    pub connections: usize,
    /// Connections so far.
    pub cumulative: u64,
    /// Bytes of the tasks that have not been sent.
    pub queued: u64,
    /// The most bytes that have waited so far.
    pub peak: u64,
}

/// What is to be said of a daemon whose connection is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// It has said goodbye.
    pub left: bool,
    /// Tasks for any daemon that it has evaluated.
    pub finished: u64,
}

/// Numbers of one endpoint; all but `online` accumulate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Daemons connected there.
    pub online: u32,
    /// Connections so far; negative since the endpoint has moved, until the next one.
    pub instance: i32,
    /// Tasks sent there so far.
    pub assigned: u64,
    /// Tasks that have ended there so far.
    pub complete: u64,
}
