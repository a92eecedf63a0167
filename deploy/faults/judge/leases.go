package judge

import (
	"encoding/json"
	"strings"
	"time"
)

// Lease is what the broker has stored of who owns an account or a destination.
type Lease struct {
	Key    string
	Stored time.Time
	Value  []byte
}

// entry is what a lease says.
type entry struct {
	Writer   string        `json:"writer"`
	Epoch    uint64        `json:"epoch"`
	Lease    time.Duration `json:"lease"`
	Released bool          `json:"released"`
	// Orphaned says that what was replaced had not been released.
	Orphaned bool `json:"orphaned"`
}

// leases judges that nobody takes what another has not released before a lease
// has passed since its last renewal, and that epochs of a key grow. The bucket
// keeps the newest entry of a key only, so some are never seen: a renewal, which
// would make the next owner look patient, or a release, of which the next tells.
func (v *Verdict) leases(e Evidence) {
	type known struct {
		entry
		at time.Time
	}
	last := make(map[string]known)
	for _, l := range e.Leases {
		if !strings.HasPrefix(l.Key, "account.") && !strings.HasPrefix(l.Key, "destination.") {
			continue // an announcement, say
		}
		now := known{at: l.Stored}
		if err := json.Unmarshal(l.Value, &now.entry); err != nil {
			v.add(Owner, "lease %s cannot be read: %v", l.Key, err)
			continue
		}
		v.Counts["leases stored"]++
		before, ok := last[l.Key]
		last[l.Key] = now
		if !ok || before.Writer == now.Writer {
			continue
		}
		v.Counts["changes of owner"]++
		if now.Epoch <= before.Epoch {
			v.add(Owner, "lease %s: epoch %d follows epoch %d", l.Key, now.Epoch, before.Epoch)
		}
		if age := now.at.Sub(before.at); now.Orphaned && age < before.Lease {
			v.add(Owner, "lease %s was taken %v after it was renewed, although it lasts %v", l.Key, age, before.Lease)
		}
	}
}
