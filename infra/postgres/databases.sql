-- Run once, when PostgreSQL's folder is empty. One database each: they are upgraded at different times.
CREATE DATABASE mlflow;
CREATE DATABASE accounts;
CREATE DATABASE prefect;
