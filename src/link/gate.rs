//! What a session asks and tells: the seam between protocol and policy. Pure.

/// A statement about to be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement<'a> {
    /// Text of a Query or Parse: all of it, or its first [`HEAD_MAX`] bytes.
    Text {
        /// As sent.
        text: &'a [u8],
        /// Whether that is all.
        complete: bool,
        /// Whether it is a simple Query.
        simple: bool,
        /// Name it is prepared under; empty for a Query or the unnamed statement.
        name: &'a [u8],
    },
    /// A Bind of a statement prepared earlier.
    Prepared(&'a [u8]),
    /// FunctionCall.
    Function,
}

/// The gate's word on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Forward it.
    Go,
    /// Leave it where it is until asked again.
    Wait,
}

/// What a session tells and asks while it works. All calls are made before the bytes concerned are sent on.
pub trait Gate {
    /// A request cycle is about to begin. `begins` says that a transaction begins with it (status `I`, nothing outstanding).
    fn request(&mut self, begins: bool, statement: Statement<'_>) -> Word;
    /// A statement of a request that is going through; after `request` for the first one of a cycle.
    fn statement(&mut self, statement: Statement<'_>);
    /// CommandComplete, with its tag.
    fn command(&mut self, tag: &[u8]);
    /// ErrorResponse with its SQLSTATE; none where it lies beyond the head.
    fn error(&mut self, body: &[u8]);
    /// ParameterStatus.
    fn parameter(&mut self, name: &[u8], value: &[u8]);
    /// NotificationResponse: the session listens.
    fn notification(&mut self);
    /// ReadyForQuery. `quiet` says that nothing else is outstanding.
    fn ready(&mut self, status: u8, quiet: bool);
    /// A reset has been carried out upstream (`true`), or went wrong (`false`): then the link must be closed.
    fn rolled_back(&mut self, as_expected: bool);
}
