package stage_test

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/crypto/ssh"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// badInput is something that a person gets wrong, and repairs.
type badInput struct {
	name string
	// prepare makes it wrong before the workers start; nil: the job is wrong.
	prepare func(*testing.T, *stage.Stage)
	// job is the one that meets it; nil: one with nothing wrong.
	job func(*stage.Stage) *attentivev1.SegmentJob
	// state and reason are how the job ends up.
	state  attentivev1.JobState
	reason fault.Reason
	// says is what its text must hold: the thing and the remedy.
	says []string
	// repair is what the person does about it.
	repair func(*testing.T, *stage.Stage)
}

const (
	blocked      = attentivev1.JobState_JOB_STATE_BLOCKED
	deadLettered = attentivev1.JobState_JOB_STATE_DEAD_LETTERED
)

func badInputs(t *testing.T) []badInput {
	t.Helper()
	stranger := hostKey(t)
	file := func(s *stage.Stage) *attentivev1.SegmentJob {
		return segmentJob(&attentivev1.Source{Location: &attentivev1.Source_Url{Url: s.URL("friends.csv")}})
	}
	return []badInput{
		{
			name:    "unknown host key",
			prepare: func(t *testing.T, s *stage.Stage) { edit(t, s, s.Sandbox.HostKey(), stranger) },
			state:   blocked, reason: fault.HostKeyUnknown,
			says:   []string{"127.0.0.1", "the host shows key", "add it to host_keys"},
			repair: func(t *testing.T, s *stage.Stage) { edit(t, s, stranger, s.Sandbox.HostKey()) },
		},
		{
			name: "wrong password",
			prepare: func(t *testing.T, s *stage.Stage) {
				write(t, filepath.Join(s.Dir, account.PassphraseFile), "guess\n")
			},
			state: blocked, reason: fault.LogInRefused,
			says: []string{account.Username + "@127.0.0.1", "refused password", "correct the user name or the secret"},
			repair: func(t *testing.T, s *stage.Stage) {
				write(t, filepath.Join(s.Dir, account.PassphraseFile), account.Passphrase+"\n")
			},
		},
		{
			name: "expired PGP key",
			prepare: func(t *testing.T, s *stage.Stage) {
				edit(t, s, filepath.Join(s.Data(), "pgp-public.asc"), expiredKey(t, s.Dir))
			},
			state: blocked, reason: fault.KeyUnusable,
			says: []string{"expired.asc", "expired on", "configure a current public key"},
			repair: func(t *testing.T, s *stage.Stage) {
				write(t, filepath.Join(s.Dir, "expired.asc"), s.Sandbox.PublicKey())
			},
		},
		{
			name:  "missing file",
			job:   file,
			state: deadLettered, reason: fault.SourceMissing,
			says:   []string{"friends.csv", "there is no such file"},
			repair: func(t *testing.T, s *stage.Stage) { write(t, filepath.Join(s.Inputs(), "friends.csv"), rows) },
		},
		{
			name: "unreadable CSV",
			prepare: func(t *testing.T, s *stage.Stage) {
				write(t, filepath.Join(s.Inputs(), "friends.csv"), "mobile,name\n(206) 555-0100,\"Ana\n")
			},
			job:   file,
			state: deadLettered, reason: fault.SourceUnreadable,
			says:   []string{"friends.csv", "row 1", "quote"},
			repair: func(t *testing.T, s *stage.Stage) { write(t, filepath.Join(s.Inputs(), "friends.csv"), rows) },
		},
		{
			name: "missing column",
			prepare: func(t *testing.T, s *stage.Stage) {
				write(t, filepath.Join(s.Inputs(), "friends.csv"), "phone\n(206) 555-0100\n")
			},
			job:   file,
			state: deadLettered, reason: fault.ColumnMissing,
			says:   []string{"friends.csv", `column "mobile"`, "its first row must name the columns"},
			repair: func(t *testing.T, s *stage.Stage) { write(t, filepath.Join(s.Inputs(), "friends.csv"), rows) },
		},
		{
			name:    "unknown template",
			prepare: func(t *testing.T, s *stage.Stage) { edit(t, s, "- id: default", "- id: standard") },
			state:   deadLettered, reason: fault.UnknownTemplate,
			says:   []string{account.Segments, `"default"`, "standard", "add it to the configuration"},
			repair: func(t *testing.T, s *stage.Stage) { edit(t, s, "- id: standard", "- id: default") },
		},
	}
}

// TestBadInput: each mistake gives an error that names the thing and the remedy,
// and loses nothing: once it is repaired, what waited goes on by itself, and what
// was dead-lettered goes on when it is replayed.
func TestBadInput(t *testing.T) {
	t.Parallel()
	for _, tt := range badInputs(t) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := run(t, func(s *stage.Stage) {
				if tt.prepare != nil {
					tt.prepare(t, s)
				}
			})
			job := segmentJob(nil)
			if tt.job != nil {
				job = tt.job(r.Stage)
			}
			r.publish(t, job)
			e := r.until(t, job.GetId(), tt.state)
			if e.GetReason() != string(tt.reason) {
				t.Errorf("reason %s, want %s", e.GetReason(), tt.reason)
			}
			for _, part := range tt.says {
				if !strings.Contains(e.GetText(), part) {
					t.Errorf("the text does not say %q:\n%s", part, e.GetText())
				}
			}
			if len(r.Sandbox.Segments()) > 0 {
				t.Errorf("the sandbox has segments %+v already", r.Sandbox.Segments())
			}
			tt.repair(t, r.Stage)
			if tt.state == deadLettered {
				r.replay(t, tt.reason)
			}
			r.succeeds(t, job.GetId())
			if left := r.letters(t); len(left) > 0 {
				t.Errorf("dead letters are left: %+v", left)
			}
		})
	}
}

// replay puts the one dead letter back once what it needs is repaired. A changed
// configuration takes effect within seconds: until then the job would come back.
func (r *running) replay(t *testing.T, reason fault.Reason) {
	t.Helper()
	letters := r.letters(t)
	if len(letters) != 1 || letters[0].Reason != reason {
		t.Fatalf("dead letters %+v, want one of reason %s", letters, reason)
	}
	if reason == fault.UnknownTemplate {
		r.reloaded(t)
	}
	if _, err := deadletter.New(r.conn, "test").Replay(t.Context(), letters[0].ID, deadletter.Guarded); err != nil {
		t.Fatal(err)
	}
}

// hostKey is the key of some other host.
func hostKey(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// expiredKey writes a key that expired yesterday, and returns its path.
func expiredKey(t *testing.T, dir string) string {
	t.Helper()
	entity, err := openpgp.NewEntity("Acme", "", "acme@example.com", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519, KeyLifetimeSecs: 3600,
		Time: func() time.Time { return time.Now().Add(-24 * time.Hour) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	w, err := armor.Encode(&text, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := entity.Serialize(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "expired.asc")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
