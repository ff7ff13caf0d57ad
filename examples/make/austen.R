# SPDX-License-Identifier: Apache-2.0
# Writes the six novels of the R package janeaustenr as they are, one line of the package a line: Rscript austen.R FOLDER
folder <- commandArgs(trailingOnly = TRUE)[1]
novels <- c(
  emma = "emma", mansfieldpark = "mansfield-park", northangerabbey = "northanger-abbey",
  persuasion = "persuasion", prideprejudice = "pride-and-prejudice", sensesensibility = "sense-and-sensibility"
)
for (name in names(novels)) {
  lines <- getExportedValue("janeaustenr", name)
  out <- file(file.path(folder, paste0("austen-", novels[[name]], ".txt")), open = "wb")
  writeLines(enc2utf8(lines), out, sep = "\n", useBytes = TRUE)
  close(out)
}
