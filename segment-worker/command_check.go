package segmentworker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/google/uuid"

	"attentive.internal/pkg/cli"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/segment-worker/internal/pgp"
	"attentive.internal/segment-worker/internal/remote"
)

// soon is how many days a PGP key may be from its end without a warning.
const soon = 30

// check tries the PGP keys of each destination and then, once for each folder of
// each credential, to log in and to publish a file.
func check(ctx context.Context, cfg *config.Config) iter.Seq[cli.Trial] {
	return func(yield func(cli.Trial) bool) {
		refused := make(map[string]bool) // credentials whose log-in failed
		tried := make(map[string]bool)
		for _, d := range cfg.ForPlugin(config.PluginSegments) {
			if d.Segment.PGP != nil && !yield(checkKeys(d)) {
				return
			}
			credential, _ := cfg.Credential(d.Credential)
			place := fmt.Sprintf("%s %s %s", d.Credential, d.Segment.RemoteFolder, d.Segment.Rename)
			if tried[place] || refused[d.Credential] {
				continue // a password refused once is not sent again: servers lock accounts
			}
			tried[place] = true
			c := remoteConfig(*credential.SFTP)
			c.Folder = d.Segment.RemoteFolder
			for _, trial := range checkFolder(ctx, "credential "+d.Credential, c, d.Segment.Rename) {
				refused[d.Credential] = refused[d.Credential] || trial.Step == logIn && trial.Outcome == cli.Failed
				if !yield(trial) {
					return
				}
			}
		}
	}
}

// checkKeys reads the keys that a destination's files are encrypted to.
func checkKeys(d config.Destination) cli.Trial {
	trial := cli.Trial{Outcome: cli.Passed, Subject: "destination " + d.ID, Step: "pgp keys", Detail: strings.Join(d.Segment.PGP.Keys, ", ")}
	now := time.Now()
	recipients, err := pgp.Load(now, d.Segment.PGP.Keys...)
	if err != nil {
		trial.Outcome, trial.Detail = cli.Failed, err.Error()
		return trial
	}
	end := recipients.Expires()
	if end.IsZero() {
		trial.Detail += ": usable, without an end"
		return trial
	}
	days := int(end.Sub(now) / (24 * time.Hour))
	trial.Detail += fmt.Sprintf(": usable for %d days, until %s", days, end.UTC().Format(time.DateOnly))
	if days < soon {
		trial.Outcome = cli.Warning
		trial.Detail += "; ask the receiver for the next key"
	}
	return trial
}

// logIn is the step without which there are no others.
const logIn = "log in"

// checkFolder logs in, which proves host and host key too, and publishes and
// removes a file.
func checkFolder(ctx context.Context, subject string, c remote.Config, rename config.Rename) []cli.Trial {
	trial := func(step, detail string, err error) cli.Trial {
		if err != nil {
			return cli.Trial{Outcome: cli.Failed, Subject: subject, Step: step, Detail: err.Error()}
		}
		return cli.Trial{Outcome: cli.Passed, Subject: subject, Step: step, Detail: detail}
	}
	session, err := remote.Dial(ctx, c)
	trials := []cli.Trial{trial(logIn, fmt.Sprintf("%s at %s:%d, whose host key is known", c.Username, c.Host, c.Port), err)}
	if err != nil {
		return trials
	}
	defer func() { _ = session.Close() }() // what was asked has been answered
	infos, err := session.List(ctx)
	trials = append(trials, trial("folder", fmt.Sprintf("%s has %d entries", c.Folder, len(infos)), err))
	if err != nil {
		return trials
	}
	step, done := "write and rename", "written, renamed and removed"
	if rename == config.RenameNone {
		step, done = "write", "written and removed"
	}
	return append(trials, trial(step, "a file in "+c.Folder+" was "+done, publishNothing(ctx, session, rename)))
}

// publishNothing writes a file, renames it as publishing does, and removes it.
func publishNothing(ctx context.Context, session *remote.Session, rename config.Rename) (err error) {
	name := ".relay-check-" + uuid.NewString()
	renamed := name + "-renamed"
	defer func() {
		// Both, since a rename that failed may have been done. What is interrupted
		// is cleaned up nevertheless.
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, session.Remove(ctx, name), session.Remove(ctx, renamed))
		if err != nil && fault.ClassOf(err) != fault.Blocked { // then it names the remedy itself
			err = fmt.Errorf("%w; ask the receiver for the right to write, rename and remove files there", err)
		}
	}()
	if _, err := session.Put(ctx, name, strings.NewReader("written by the command check; may be removed\n")); err != nil {
		return err
	}
	switch rename {
	case config.RenameNone:
		return nil
	case config.RenamePosix:
		return session.PosixRename(ctx, name, renamed)
	}
	return session.Rename(ctx, name, renamed)
}
