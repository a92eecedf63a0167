package fault

// Reason says why work was dead-lettered or is blocked. The list is closed:
// dashboards, alerts and the command line know each value.
type Reason string

// Reasons of dead letters.
const (
	// InvalidMessage cannot be decoded or breaks a constraint of the contract.
	InvalidMessage Reason = "invalid_message"
	// UnknownDestination is named by no configuration.
	UnknownDestination Reason = "unknown_destination"
	// UnknownTemplate is not a template of the destination.
	UnknownTemplate Reason = "unknown_template"
	// AccessDenied means the requester may not use the destination.
	AccessDenied Reason = "access_denied"
	// JobIDReused is a job id seen before with other bytes.
	JobIDReused Reason = "job_id_reused"
	// SourceMissing means the named source does not exist.
	SourceMissing Reason = "source_missing"
	// SourceForbidden is a URL outside the allowed prefixes.
	SourceForbidden Reason = "source_forbidden"
	// SourceUnreadable cannot be decoded as its format.
	SourceUnreadable Reason = "source_unreadable"
	// SourceChanged differs from its digest or from an earlier attempt.
	SourceChanged Reason = "source_changed"
	// ColumnMissing means the source lacks a column that the template names.
	ColumnMissing Reason = "column_missing"
	// TooManyRejects means the reject share was passed.
	TooManyRejects Reason = "too_many_rejects"
	// TooLarge passes a ceiling on rows, bytes or memory.
	TooLarge Reason = "too_large"
	// EmptyAudience would replace a list with nothing.
	EmptyAudience Reason = "empty_audience"
	// AudienceShrank would replace a list with a much smaller one.
	AudienceShrank Reason = "audience_shrank"
	// Superseded means newer work of the same segment has succeeded.
	Superseded Reason = "superseded"
	// Rejected is a permanent answer of the API.
	Rejected Reason = "rejected"
	// InvalidProfile cannot be sent as it is.
	InvalidProfile Reason = "invalid_profile"
	// OutcomeUnknown is a consent call, or the publication of a segment job, that
	// may or may not have had its effect.
	OutcomeUnknown Reason = "outcome_unknown"
	// StaleConsent is a subscribe older than its maximum age.
	StaleConsent Reason = "stale_consent"
	// SensitiveData is of a kind that Attentive must not be given.
	SensitiveData Reason = "sensitive_data"
	// TypeDrift is a value of another type than its attribute has.
	TypeDrift Reason = "type_drift"
	// RetriesExhausted means the retry budget is spent.
	RetriesExhausted Reason = "retries_exhausted"
	// CrashLoop is a message that killed its worker each time.
	CrashLoop Reason = "crash_loop"
	// Panicked is a message whose handling panicked.
	Panicked Reason = "panicked"
)

// Reasons of blocks.
const (
	// LogInRefused is a credential that the other side does not accept.
	LogInRefused Reason = "log_in_refused"
	// HostKeyUnknown is a host that shows a key we do not know.
	HostKeyUnknown Reason = "host_key_unknown"
	// Unreachable is a host of the other side that does not answer.
	Unreachable Reason = "unreachable"
	// ScopeMissing is a credential without the right to an endpoint.
	ScopeMissing Reason = "scope_missing"
	// FolderUnusable is a remote folder that is missing or not writable.
	FolderUnusable Reason = "folder_unusable"
	// StorageFull is a remote disk or quota that is full.
	StorageFull Reason = "storage_full"
	// KeyUnusable is a PGP key that cannot encrypt (expired, revoked, no subkey).
	KeyUnusable Reason = "key_unusable"
	// Misconfigured is a setting that the other side refuses for every message.
	Misconfigured Reason = "misconfigured"
	// SecretMissing is a secret that cannot be read.
	SecretMissing Reason = "secret_missing"
	// TextingHours means that nobody may be texted now.
	TextingHours Reason = "texting_hours"
	// DeadLettersFull means dead letters cannot be stored.
	DeadLettersFull Reason = "dead_letters_full"
	// ContractNewer is a message of a newer contract than this worker knows.
	ContractNewer Reason = "contract_newer"
	// BrokerUnavailable is our own broker, which does not answer in time or refuses.
	BrokerUnavailable Reason = "broker_unavailable"
	// QueueFull means that the queue of profiles has no room for those of a job.
	QueueFull Reason = "queue_full"
)

// DeadLetterReasons lists every reason a dead letter can have.
func DeadLetterReasons() []Reason {
	return []Reason{
		InvalidMessage, UnknownDestination, UnknownTemplate, AccessDenied, JobIDReused,
		SourceMissing, SourceForbidden, SourceUnreadable, SourceChanged, ColumnMissing,
		TooManyRejects, TooLarge, EmptyAudience, AudienceShrank, Superseded, Rejected,
		InvalidProfile, OutcomeUnknown, StaleConsent, SensitiveData, TypeDrift, RetriesExhausted, CrashLoop, Panicked,
	}
}

// BlockReasons lists every reason of a block.
func BlockReasons() []Reason {
	return []Reason{
		LogInRefused, HostKeyUnknown, Unreachable, ScopeMissing, FolderUnusable,
		StorageFull, KeyUnusable, Misconfigured, SecretMissing, TextingHours, DeadLettersFull, ContractNewer,
		BrokerUnavailable, QueueFull,
	}
}
