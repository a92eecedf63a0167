package progress_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/queuetest"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const jobID = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

func of(state attentivev1.JobState, text string) *attentivev1.JobEvent {
	return &attentivev1.JobEvent{JobId: jobID, Destination: "acme", State: state, Text: text, Attempt: 1, Time: timestamppb.Now()}
}

func TestFollowTellsTheStory(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	events := event.NewPublisher(conn, slog.New(slog.DiscardHandler))
	blocked := of(attentivev1.JobState_JOB_STATE_BLOCKED, "sftp acme: log in: refused; correct the secret")
	blocked.Reason = "log_in_refused"
	sending := of(attentivev1.JobState_JOB_STATE_SENDING, "sending")
	sending.Progress = &attentivev1.Progress{RowsRead: 100, ProfilesTotal: 100, ProfilesOutstanding: 75}
	for _, e := range []*attentivev1.JobEvent{
		of(attentivev1.JobState_JOB_STATE_RECEIVED, "received"), blocked,
		of(attentivev1.JobState_JOB_STATE_EXPANDING, "expanding"), sending, sending,
		of(attentivev1.JobState_JOB_STATE_SUCCEEDED, "done"),
	} {
		e.Time = timestamppb.Now()
		events.Publish(t.Context(), contract.Expand, e)
	}
	var out logtest.Buffer
	seen := 0
	last, err := progress.New(&out, progress.Style{}).Follow(t.Context(), conn, progress.Job{
		Kind: contract.Expand, Destination: "acme", ID: jobID, Label: "attributes",
		Seen: func(*attentivev1.JobEvent) { seen++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != 6 || last.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED {
		t.Errorf("%d events seen, the last %v; want 6, ending in success", seen, last)
	}
	want := `attributes  received
attributes  blocked (log_in_refused): sftp acme: log in: refused; correct the secret; it goes on by itself once that is repaired
attributes  expanding
attributes  sending
attributes  succeeded
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

func TestFollowShowsHowFarItIs(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	events := event.NewPublisher(conn, slog.New(slog.DiscardHandler))
	uploading := of(attentivev1.JobState_JOB_STATE_UPLOADING, "uploading")
	uploading.Progress = &attentivev1.Progress{RowsRead: 250}
	events.Publish(t.Context(), contract.Segment, uploading)
	dead := of(attentivev1.JobState_JOB_STATE_DEAD_LETTERED, "no such object")
	dead.Reason = "source_missing"
	events.Publish(t.Context(), contract.Segment, dead)
	var out logtest.Buffer
	_, err := progress.New(&out, progress.Style{Live: true}).Follow(t.Context(), conn, progress.Job{
		Kind: contract.Segment, Destination: "acme", ID: jobID, Rows: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "acme  uploading rows  [#####---------------]  25%  250 of 1,000"; !strings.Contains(out.String(), want) {
		t.Errorf("%q was never shown: %q", want, out.String())
	}
	if diff := cmp.Diff([]string{"acme  dead-lettered (source_missing)"}, terminal(t, out.String())); diff != "" {
		t.Errorf("screen at the end (-want +got):\n%s", diff)
	}
}

func TestFollowSaysThatNobodyWorks(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	var out logtest.Buffer
	ended := make(chan error, 1)
	var work sync.WaitGroup
	defer func() { cancel(nil); work.Wait() }()
	work.Go(func() {
		last, err := progress.New(&out, progress.Style{}).Follow(ctx, conn, progress.Job{Kind: contract.Segment, Destination: "acme", ID: jobID})
		if last != nil {
			t.Errorf("an event of a job that nobody worked: %v", last)
		}
		ended <- err
	})
	const want = "no worker has taken it yet"
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), want); {
		if time.Now().After(deadline) {
			t.Fatalf("%q is not said: %q", want, out.String())
		}
		<-time.After(10 * time.Millisecond)
	}
	cause := errors.New("enough")
	cancel(cause)
	if err := <-ended; !errors.Is(err, cause) {
		t.Errorf("Follow ended with %v, want the cause of its context", err)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	succeeded := of(attentivev1.JobState_JOB_STATE_SUCCEEDED, "done")
	succeeded.Segments = []*attentivev1.SegmentResult{
		{Name: "Winback_Jeans", Rows: 600_000, Files: []string{"acme_1.csv", "acme_2.csv"}},
		{Name: "Winback_Shoes", Rows: 3},
	}
	succeeded.Warnings = []string{`segment "Winback_Jeans" has 2 files`}
	succeeded.Progress = &attentivev1.Progress{
		RowsRead: 600_010, RowsSent: 600_003, RowsDuplicate: 1, RowsRejected: 6,
		RejectedByReason: map[string]uint64{"phone_empty": 1, "phone_invalid": 5}, RejectsObject: "rejects/segment/acme/" + jobID,
	}
	dead := of(attentivev1.JobState_JOB_STATE_DEAD_LETTERED, "gone")
	dead.Progress = &attentivev1.Progress{RowsRead: 5, ProfilesTotal: 4, ProfilesOutstanding: 3, ProfilesDead: 1}
	for _, tt := range []struct {
		name  string
		event *attentivev1.JobEvent
		want  string
	}{
		{"success", succeeded, `SEGMENT        ROWS     FILES
Winback_Jeans  600,000  acme_1.csv acme_2.csv
Winback_Shoes  3        -
rows      600,010 read, 600,003 sent, 1 duplicate, 6 rejected
rejected  5 phone_invalid
rejected  1 phone_empty
rejected rows are kept with their reasons: see jobs rejects ` + jobID + `
warning: segment "Winback_Jeans" has 2 files
delivered; Attentive shows it within 24 hours
`},
		{"dead letter", dead, `rows      5 read, 0 sent, 0 duplicate, 0 rejected
profiles  4 stored, 3 outstanding, 1 dead-lettered
`},
		{"nothing known", of(attentivev1.JobState_JOB_STATE_CANCELLED, ""), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			progress.Report(&out, tt.event)
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}
