package contract

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"google.golang.org/protobuf/proto"
)

// LiveJob stands for the job in the subject of a profile published alone.
const LiveJob = "live"

// What stands in the subject of a dead letter for a job or a destination that
// cannot be told, or is nothing that a subject can hold. Neither is an id.
const (
	noJob         = "unknown"
	noDestination = "_unknown"
)

const root = "attentive.v1."

// JobSubject returns the subject of jobs of kind k, [Segment] or [Expand].
func JobSubject(k Kind, destination string) string {
	return root + string(k) + "." + destination
}

// ProfileSubject returns the subject of profiles of kind k. The job is
// [LiveJob] for a profile published alone.
func ProfileSubject(destination string, k Kind, job string) string {
	return root + "profile." + destination + "." + string(k) + "." + job
}

// CheckpointSubject returns the subject that keeps how far a job is expanded.
// It lies in the stream of the profiles, so that both change in one batch.
func CheckpointSubject(destination, job string) string {
	return root + "checkpoint." + destination + "." + job
}

// EventSubject returns the subject of a job's events; k is [Segment] or
// [Expand].
func EventSubject(k Kind, destination, job string) string {
	return root + "event." + string(k) + "." + destination + "." + job
}

// ActionSubject returns the subject of what operators have done; the verb may be
// the wildcard "*".
func ActionSubject(verb string) string { return root + "action." + verb }

// DeadSubject returns the subject of a dead letter. What is no kind, or no
// subject token, becomes "unknown"; a destination, "_unknown". Kind and destination
// may be the wildcard "*".
func DeadSubject(k Kind, destination, job string) string {
	if k != "*" && !slices.Contains(Kinds(), k) {
		k = Unknown
	}
	if destination != "*" && !isToken(destination) {
		destination = noDestination
	}
	if !isToken(job) {
		job = noJob
	}
	return root + "dead." + string(k) + "." + destination + "." + job
}

// ConsumerFilter returns what the durable consumer of k and destination
// filters on. Filters of two consumers never overlap.
func ConsumerFilter(k Kind, destination string) string {
	if k.Job() {
		return JobSubject(k, destination)
	}
	return ProfileSubject(destination, k, "*")
}

// MsgID returns the Nats-Msg-Id of the job or profile with the id.
func MsgID(destination, id string) string { return destination + "/" + id }

// Address is what a subject says about its message.
type Address struct {
	Kind        Kind
	Destination string
	// Job is the job's id, [LiveJob], or "" where the subject does not tell.
	Job string
}

// ParseSubject reads the subject of a job, profile, event or dead letter.
//
// The shape and the kind are checked. Destination and job are what a publisher
// wrote, and may break the contract; [CheckSubject] judges them.
func ParseSubject(subject string) (Address, error) {
	bad := func(want string) (Address, error) {
		return Address{}, fmt.Errorf("subject %.200q: want %s", subject, want)
	}
	rest, ok := strings.CutPrefix(subject, root)
	if !ok {
		return bad(root + "<class>...")
	}
	token := strings.Split(rest, ".")
	if slices.ContainsFunc(token, func(s string) bool { return !isToken(s) }) {
		return bad("tokens without spaces or wildcards")
	}
	switch class := token[0]; class {
	case "segment", "expand":
		if len(token) != 2 {
			return bad(root + class + ".<destination>")
		}
		return Address{Kind: Kind(class), Destination: token[1]}, nil
	case "profile":
		if len(token) != 4 || !Kind(token[2]).Profile() {
			return bad(root + "profile.<destination>.<attributes|subscribe|unsubscribe>.<job>")
		}
		return Address{Kind: Kind(token[2]), Destination: token[1], Job: token[3]}, nil
	case "event":
		if len(token) != 4 || !Kind(token[1]).Job() {
			return bad(root + "event.<segment|expand>.<destination>.<job>")
		}
		return Address{Kind: Kind(token[1]), Destination: token[2], Job: token[3]}, nil
	case "dead":
		if len(token) != 4 || Kind(token[1]) != Unknown && !slices.Contains(Kinds(), Kind(token[1])) {
			return bad(root + "dead.<kind>.<destination>.<job>")
		}
		a := Address{Kind: Kind(token[1]), Destination: token[2], Job: token[3]}
		if a.Destination == noDestination {
			a.Destination = ""
		}
		if a.Job == noJob {
			a.Job = ""
		}
		return a, nil
	}
	return bad("a class of segment, expand, profile, event or dead")
}

// Claimed reads the subject of a message in a queue, whatever a publisher wrote
// where kind, destination and job belong, and returns the filter of all messages
// of the same kind and destination. A kind that is none is [Unknown]. ok is false
// for subjects that are of no queue.
func Claimed(subject string) (a Address, filter string, ok bool) {
	rest, ok := strings.CutPrefix(subject, root)
	token := strings.Split(rest, ".")
	switch {
	case !ok:
	case len(token) == 2 && Kind(token[0]).Job():
		return Address{Kind: Kind(token[0]), Destination: token[1]}, subject, true
	case len(token) == 4 && token[0] == "profile":
		a := Address{Kind: Kind(token[2]), Destination: token[1], Job: token[3]}
		if !a.Kind.Profile() {
			a.Kind = Unknown
		}
		return a, strings.TrimSuffix(subject, token[3]) + "*", true
	}
	return Address{}, "", false
}

// Workable reports whether a configuration can name the destination of a, and a
// worker work its kind.
func (a Address) Workable() bool { return isID(a.Destination) && slices.Contains(Kinds(), a.Kind) }

// CheckSubject returns a Permanent fault when m was published to another
// subject than it belongs to: a job to another destination than it names, a
// profile to another queue than its operation says.
func CheckSubject(subject string, m proto.Message) error {
	got, err := ParseSubject(subject)
	if err != nil {
		return fault.Permanentf(fault.InvalidMessage, "%w", err)
	}
	var want string
	switch m := m.(type) {
	case *attentivev1.SegmentJob:
		want = JobSubject(Segment, m.GetDestination())
	case *attentivev1.AttributesJob:
		want = JobSubject(Expand, m.GetDestination())
	case *attentivev1.Profile:
		if err := checkProfileAddress(subject, got); err != nil {
			return err
		}
		want = ProfileSubject(got.Destination, KindOf(m), got.Job)
	case *attentivev1.JobEvent:
		want = EventSubject(got.Kind, m.GetDestination(), m.GetJobId())
	default:
		return fault.Permanentf(fault.InvalidMessage, "%s is not a message of the contract", nameOf(m))
	}
	if subject != want {
		return fault.Permanentf(fault.InvalidMessage, "subject %.200q: the %s in it belongs to %.200q", subject, nameOf(m), want)
	}
	return nil
}

// checkProfileAddress checks what the subject of a profile says.
func checkProfileAddress(subject string, a Address) error {
	if !isID(a.Destination) {
		return fault.Permanentf(fault.InvalidMessage, "subject %.200q: the destination must have 1 to 32 of a-z, 0-9 and -", subject)
	}
	if a.Job != LiveJob && !isUUID(a.Job) {
		return fault.Permanentf(fault.InvalidMessage, "subject %.200q: the job must be %q or a UUID in lower case", subject, LiveJob)
	}
	return nil
}

// isToken reports whether s can be one token of a subject.
func isToken(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '.' || r == '*' || r == '>' || r == unicode.ReplacementChar || unicode.IsSpace(r) || unicode.IsControl(r)
	})
}

// isID reports whether s is an id of a destination, template or credential.
func isID(s string) bool {
	if len(s) < 1 || len(s) > 32 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// isUUID reports whether s is a UUID in lower case with hyphens.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}
